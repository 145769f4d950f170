import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.instances import make_templates
from meinst_d2.masks import rle as I

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def annotation(segmentation: Any, box: tuple = (10, 10, 30, 30), crowd: bool = False) -> InstanceAnnotation:
    return InstanceAnnotation(segmentation, box, (40, 50), 1, crowd)


def full_rle(height: int = 40, width: int = 50) -> dict[str, Any]:
    return mask_util.encode(np.asfortranarray(np.ones((height, width), np.uint8)))


def test_polygons_rles_and_bit_masks_side_by_side() -> None:
    bit_mask = np.zeros((40, 50), bool)
    bit_mask[10:30, 10:20] = True
    templates = make_templates(
        [
            annotation([SQUARE]),
            annotation(full_rle()),
            annotation({"size": [40, 50], "counts": [0, 2000]}),
            annotation(bit_mask),
        ],
        4,
    )
    assert not templates.skipped and templates.kept.tolist() == [0, 1, 2, 3]
    assert templates.masks[:3].all()
    assert templates.masks[3].tolist() == [[True, True, False, False]] * 4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (annotation([SQUARE], crowd=True), I.CROWD),
        (annotation(None), I.NO_MASK),
        (annotation([]), I.NO_MASK),
        (annotation([[1, 2, 3, 4]]), I.FEW_POINTS),
        (annotation([[1, 2, 3, 4, 5, 6, 7]]), I.FEW_POINTS),
        (annotation([SQUARE], (10, 10, 10, 30)), I.NO_BOX),
        (annotation([SQUARE], (10, 10, float("nan"), 30)), I.NO_BOX),
        (annotation(full_rle(50, 40)), I.BAD_RLE),
        (annotation({"size": [40, 50], "counts": [1]}), I.BAD_RLE),
        (annotation(np.ones((3, 3), bool)), I.BAD_RLE),
        (annotation("square"), I.MALFORMED),
        (annotation(SQUARE), I.MALFORMED),
        (annotation([["a", 1, 2, 3, 4, 5]]), I.MALFORMED),
        (annotation([[float("nan"), 1, 2, 3, 4, 5]]), I.MALFORMED),
        (annotation([SQUARE], (35, 35, 39, 39)), I.EMPTY),
    ],
)
def test_what_cannot_be_used_is_counted_by_reason(bad: InstanceAnnotation, reason: str) -> None:
    templates = make_templates([annotation([SQUARE]), bad, annotation([SQUARE])], 8)
    assert templates.skipped == {reason: 1}
    assert templates.kept.tolist() == [0, 2] and templates.masks.shape == (2, 8, 8)


def test_good_parts_of_a_polygon_are_used() -> None:
    templates = make_templates([annotation([[1, 2, 3, 4], SQUARE])], 8)
    assert templates.masks.all() and not templates.skipped


def test_no_annotations() -> None:
    assert make_templates([], 8).masks.shape == (0, 8, 8)


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "height": 40, "width": 50, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": [SQUARE]}],
        "categories": [{"id": 3, "name": "thing"}],
    } | changes


def test_a_coco_file_gives_corners_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco()))
    (read,) = read_coco_json(path)
    assert read.box == (10, 10, 30, 30) and read.image_size == (40, 50) and read.category == 0 and not read.iscrowd


def test_classes_are_numbered_by_rising_id_and_unknown_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    annotations = [{"image_id": 7, "category_id": i, "bbox": [0, 0, 1, 1]} for i in (9, 3, 4)] + [{"image_id": 7}]
    categories = [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}]
    path.write_text(json.dumps(coco(annotations=annotations, categories=categories)))
    assert [read.category for read in read_coco_json(path)] == [1, 0, -1, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("[1]", "no object"),
        ("", "no object"),
        (json.dumps(coco())[:-3], "cut off"),
        (json.dumps({"images": []}), "not in COCO's instances format"),
        (json.dumps(coco(images=[{"id": 1}])), "image number 0 needs an id, a height and a width"),
        (json.dumps(coco(images=[{"id": 1, "height": 1e999, "width": 4}])), "image number 0 needs"),
        (json.dumps(coco(images=[{"id": [1], "height": 4, "width": 4}])), "image number 0 needs"),
        (json.dumps(coco(images=[{"id": 1, "height": 2**63, "width": 4}])), "image number 0 has a height of"),
        (json.dumps(coco(images=[{"id": 1, "height": "9" * 30, "width": 4}])), "image number 0 has a height of"),
        (json.dumps(coco(categories=[{"id": 1}, {"id": [1]}])), "category number 1 needs an id"),
        (json.dumps(coco(categories=[{"id": {}}])), "category number 0 needs an id"),
        (json.dumps(coco(annotations={})), "'annotations' is a dict instead of a list"),
        (json.dumps(coco(annotations=[7])), "number 0 of 'annotations' is a int instead of an object"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_coco_json(path)


@pytest.mark.parametrize("depth", [10, 300, 600, 900, 3000, 100_000])
def test_a_segmentation_that_is_nested_deeply_is_useless_or_refused(tmp_path: Path, depth: int) -> None:
    text = json.dumps(coco(annotations=[{**coco()["annotations"][0], "segmentation": "HERE"}]))
    (tmp_path / "a.json").write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
    try:
        assert make_templates(read_coco_json(tmp_path / "a.json"), 4).skipped == {I.MALFORMED: 1}
    except ValueError as error:  # how deep is too deep is up to Python
        assert "a.json" in str(error) and "nested too deeply" in str(error) and depth > 100


@pytest.mark.parametrize("order", [("annotations", "categories", "images"), ("categories", "images", "annotations")])
def test_sections_come_in_any_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({section: coco()[section] for section in order}))
    (read,) = read_coco_json(path)
    assert read.image_size == (40, 50) and read.category == 0


@pytest.mark.parametrize("box", [None, [1, 2, 3], "box", [1, 2, 3, "4"], {"x": 1}, [[1, 2, 3, 4]], [1e999, 0, 1, 1]])
def test_a_box_that_is_none_is_without_area(tmp_path: Path, box: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco(annotations=[{**coco()["annotations"][0], "bbox": box}])))
    assert make_templates(read_coco_json(path), 4).skipped == {I.NO_BOX: 1}


def test_ids_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco(annotations=[{"image_id": [7], "category_id": {}, "bbox": [0, 0, 1, 1]}])))
    (read,) = read_coco_json(path)
    assert read.image_size == (0, 0) and read.category == -1


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        read_coco_json(tmp_path / "absent.json")
