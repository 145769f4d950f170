"""Which masks are fitted to and which are measured."""

from pathlib import Path

import numpy as np
import pytest

from meinst_d2.check import encodings
from meinst_d2.check.annotation_rules import check_masks
from meinst_d2.check.coco_file import CocoFile, scan
from meinst_d2.check.encodings import held_out, measure_classes
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.shapes import generate
from meinst_d2.encoding import SigmoidClamp, fit_pca, save_components
from meinst_d2.encoding.components import load_components
from meinst_d2.fitting.count import count_moments
from tests.check.datasets import Content, good_content, spoiled


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> CocoFile:
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 60}, workers=1)
    file = scan(root / "annotations/instances_train.json")
    check_masks(file)
    return file


def test_a_fifth_of_every_class_is_measured_and_the_rest_fitted_to(shapes: CocoFile) -> None:
    fitted, measured = held_out(shapes)
    categories = shapes.annotations.categories
    for k in range(len(shapes.classes)):
        of_class = shapes.learned & (categories == k)
        assert (categories[measured] == k).sum() == -(-of_class.sum() // 5)
    assert not set(fitted) & set(measured) and len(fitted) + len(measured) == shapes.learned.sum()


def test_there_is_a_limit_to_both(shapes: CocoFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "MOST_FITTED", 30)
    monkeypatch.setattr(encodings, "MOST_PER_CLASS", 3)
    fitted, measured = held_out(shapes)
    assert len(set(fitted)) == 30 and len(set(measured)) == 3 * len(shapes.classes)
    assert fitted[-1] > 0.9 * len(shapes.annotations)


def test_unusable_masks_are_in_neither(tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        annotations = content["annotations"]
        annotations[0]["segmentation"] = []
        annotations[1]["category_id"] = 5
        annotations[2]["bbox"] = [30.0, 30.0, 6.0, 6.0]  # without a pixel of the mask
        annotations[3]["image_id"] = 99

    file = scan(spoiled(tmp_path, spoil))
    check_masks(file)
    assert np.sort(np.concatenate(held_out(file))).tolist() == list(range(4, len(good_content()["annotations"])))


def test_refined_masks_are_limited_by_their_grid(shapes: CocoFile) -> None:
    measured = measure_classes(shapes, [(28, 20)], grids=[23])
    code, grid = measured.rows
    assert grid.encoding.mask_size == 23 and grid.total.iou > code.total.iou
    assert "grid 23x23" in measured.table()


def test_given_components_redraw_as_fitted_ones(shapes: CocoFile, tmp_path: Path) -> None:
    fitted = measure_classes(shapes, [(14, 12)])
    rows, _ = held_out(shapes)
    annotations = [read_coco_json(shapes.path)[int(row)] for row in rows]
    moments, _ = count_moments(annotations, 14)
    save_components(tmp_path / "c.npz", [fit_pca(moments, SigmoidClamp()).truncated(12)], {})
    given = measure_classes(shapes, [(14, 5), (28, 9)], load_components(tmp_path / "c.npz"))
    assert [row.encoding.length for row in given.rows] == [5, 12] and given.fitted_to == 0
    assert given.rows[1].total.iou == pytest.approx(fitted.rows[0].total.iou, abs=1e-3)
    assert given.rows[0].total.iou < given.rows[1].total.iou
    assert fitted.measured == given.measured and fitted.fitted_to == len(rows)


def test_a_table_of_masks_none_of_which_could_be_measured(shapes: CocoFile, tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        for annotation in content["annotations"]:  # an outline that is too long at the object's own resolution
            annotation |= {"segmentation": [[0.0, 0.0, 2e6, 0.0, 0.0, 100.0]], "bbox": [0.0, 0.0, 100.0, 100.0]}

    file = scan(spoiled(tmp_path, spoil))
    check_masks(file)
    moments, _ = count_moments(read_coco_json(shapes.path), 28)
    save_components(tmp_path / "c.npz", [fit_pca(moments, SigmoidClamp()).truncated(5)], {})
    measured = measure_classes(file, [], load_components(tmp_path / "c.npz"))
    assert measured.measured == 0 and measured.table().splitlines()[-1].split()[:2] == ["all", "0"]


def test_poor_classes_are_named_and_other_classes_refused(shapes: CocoFile, tmp_path: Path) -> None:
    poor = measure_classes(shapes, [(4, 2)]).poor_classes()
    assert len(poor) == 6 and poor[0].startswith("ring (0.") and poor[0].endswith("pca 4x4, 2)")
    assert not measure_classes(shapes, [(4, 2), (28, 40)]).poor_classes()
    moments, _ = count_moments(read_coco_json(shapes.path), 14)
    basis = fit_pca(moments, SigmoidClamp()).truncated(5)
    save_components(tmp_path / "c.npz", [basis] * 3, {})
    with pytest.raises(ValueError, match="for 3 classes, the annotations have 6"):
        measure_classes(shapes, [], load_components(tmp_path / "c.npz"))
