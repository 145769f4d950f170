"""The quality of encodings over a dataset, against definitions written again."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.instances import make_templates
from meinst_d2.data.shapes import ShapesConfig, draw_image, generate
from meinst_d2.encoding import ClassPCAEncoder, DCTEncoder, PCAEncoder, PixelEncoder, SigmoidClamp, fit_pca
from meinst_d2.fitting.count import count_moments
from meinst_d2.masks.metrics import boundary_region, mask_iou
from meinst_d2.masks.paste import stretch
from meinst_d2.reconstruction import measure as reconstruction
from meinst_d2.reconstruction import report
from meinst_d2.reconstruction.baselines import BinaryGrid, PolarRays
from meinst_d2.reconstruction.encodings import (
    Encoding,
    FittedDictionaries,
    make_encodings,
    reconstruct,
    reconstruct_templates,
)
from meinst_d2.reconstruction.measure import SIZES, TEMPLATE_IOU, measure_encodings, own_resolution_mask, size_of
from meinst_d2.reconstruction.plots import EXAMPLES, draw_reconstructed, example_shapes

NUM_CLASSES = 6


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> list[InstanceAnnotation]:
    """Generated shapes: polygons and RLEs, and a crowd region."""
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 45}, workers=1)
    found = read_coco_json(root / "annotations/instances_train.json")
    assert any(a.iscrowd for a in found) and len({isinstance(a.segmentation, list) for a in found}) == 2
    return found


@pytest.fixture(scope="module")
def encodings(annotations: list[InstanceAnnotation]) -> list[Encoding]:
    dictionaries = FittedDictionaries(annotations, NUM_CLASSES, [10, 30], per_class=False)
    return [
        *make_encodings("pca", [28], [10, 30], [True], [True], dictionaries.bases),
        *make_encodings("dct", [14], [10]),
        *make_encodings("grid", [28]),
        *make_encodings("area-grid", [28]),
        *make_encodings("polar", [28]),
    ]


@pytest.fixture(scope="module")
def tally(annotations: list[InstanceAnnotation], encodings: list[Encoding]) -> reconstruction.Tally:
    return measure_encodings(annotations, encodings, NUM_CLASSES)


def usable(annotations: list[InstanceAnnotation]) -> list[InstanceAnnotation]:
    return [annotations[i] for i in make_templates(annotations, 28).kept]


def test_own_resolution_by_the_definition(
    annotations: list[InstanceAnnotation], encodings: list[Encoding], tally: reconstruction.Tally
) -> None:
    kept = usable(annotations)
    full = [own_resolution_mask(a) for a in kept]
    for i, encoding in enumerate(encodings):
        if isinstance(encoding.codec, torch.nn.Module):
            templates = make_templates(kept, encoding.codec.mask_size).masks
            with torch.no_grad():
                probabilities = reconstruct_templates(encoding.codec, templates)
            again = [stretch(p, *mask.shape) for p, mask in zip(probabilities, full, strict=True)]
        else:
            again = [reconstruct(encoding, mask) for mask in full]
        quality = tally.quality(i)
        assert quality.count == len(kept)
        assert quality.iou == pytest.approx(np.mean([mask_iou(a, b) for a, b in zip(full, again, strict=True)]))
        expected = np.mean([mask_iou(boundary_region(a), boundary_region(b)) for a, b in zip(full, again, strict=True)])
        assert quality.boundary_iou == pytest.approx(expected)


@pytest.mark.parametrize("sigmoid", [True, False])
def test_templates_by_the_definition(annotations: list[InstanceAnnotation], sigmoid: bool) -> None:
    """Projected on the first D components of the pixels, or of their logits, and cut in the middle."""
    magnitude = SigmoidClamp().logit_moments()[0]
    basis = fit_pca(count_moments(annotations, 28)[0], SigmoidClamp() if sigmoid else None)
    masks = make_templates(annotations, 28).masks.reshape(-1, 784)
    signal, threshold = ((2.0 * masks - 1) * magnitude, 0.0) if sigmoid else (masks.astype(float), 0.5)
    encodings = list(make_encodings("pca", [28], [10, 30], [sigmoid], [True], [basis]))
    tally = measure_encodings(annotations, encodings, None, templates_only=True)
    for i, dim in enumerate((10, 30)):
        rows = basis.components[:dim]
        drawn = (signal - basis.mean) @ rows.T @ rows + basis.mean >= threshold
        quality = tally.quality(i)
        assert quality.count == len(masks)
        assert quality.template_iou == pytest.approx(((masks & drawn).sum(1) / (masks | drawn).sum(1)).mean())
        foreground = (masks & drawn).sum() / (masks | drawn).sum()
        background = (~masks & ~drawn).sum() / (~masks | ~drawn).sum()
        assert quality.pooled_miou == pytest.approx((foreground + background) / 2)


def test_templates_alone_measure_the_same(
    annotations: list[InstanceAnnotation], encodings: list[Encoding], tally: reconstruction.Tally
) -> None:
    alone = measure_encodings(annotations, encodings, NUM_CLASSES, templates_only=True)
    assert (alone.sums[:, 0, :, TEMPLATE_IOU] == tally.sums.sum(axis=1)[..., TEMPLATE_IOU]).mean() > 0.9
    for i in range(len(encodings)):
        assert alone.quality(i).template_iou == pytest.approx(tally.quality(i).template_iou, rel=1e-5, nan_ok=True)
        assert alone.quality(i).pooled_miou == pytest.approx(tally.quality(i).pooled_miou, rel=1e-5, nan_ok=True)


def test_pixels_and_fixed_logits_reconstruct_alike(annotations: list[InstanceAnnotation]) -> None:
    """A fixed clamp only scales the signal around its threshold."""
    fixed = SigmoidClamp(0.12, 0.12)
    moments, masks = count_moments(annotations, 28)[0], make_templates(annotations, 28).masks[:50]

    def drawn(clamp: SigmoidClamp | None) -> np.ndarray:
        bases = [fit_pca(moments, clamp).truncated(20)]
        (one,) = make_encodings("pca", [28], [20], [clamp is not None], [False], bases, clamp or fixed)
        return reconstruct_templates(one.codec, masks) >= 0.5

    assert (drawn(None) != drawn(fixed)).mean() < 1e-3


def test_grids_and_outlines(encodings: list[Encoding], tally: reconstruction.Tally) -> None:
    grid, area_grid, polar = (tally.quality(i) for i in range(3, 6))
    assert grid.template_iou == grid.pooled_miou == 1
    assert np.isnan([area_grid.template_iou, area_grid.pooled_miou, polar.template_iou, polar.pooled_miou]).all()
    assert area_grid.iou > grid.iou > 0.9 > polar.iou
    assert [e.length for e in encodings] == [10, 30, 10, 784, 784, 38]
    assert [e.mask_size for e in encodings] == [28, 28, 14, 28, 28, None]


def test_groups_add_up(annotations: list[InstanceAnnotation], tally: reconstruction.Tally) -> None:
    kept = usable(annotations)
    by_class = [tally.quality(0, classes=k) for k in range(NUM_CLASSES)]
    by_size = [tally.quality(0, size=size) for size in range(3)]
    assert [q.count for q in by_class] == [sum(a.category == k for a in kept) for k in range(NUM_CLASSES)]
    sizes = [size_of(a, own_resolution_mask(a)) for a in kept]
    assert [q.count for q in by_size] == [sizes.count(size) for size in range(3)]
    for groups in (by_class, [q for q in by_size if q.count]):
        assert sum(q.count * q.iou for q in groups) / len(kept) == pytest.approx(tally.quality(0).iou)
    assert tally.quality(0, classes=[1, 4]).count == by_class[1].count + by_class[4].count
    assert np.isnan(tally.quality(0, classes=[]).iou) and tally.quality(0, classes=[]).count == 0


def test_outlines_fail_on_rings_and_cut_discs_alone(tally: reconstruction.Tally) -> None:
    ring, star, *_, cut, _ = ([tally.quality(i, classes=k).iou for i in (1, 5)] for k in range(NUM_CLASSES))
    assert ring[0] > 0.9 > 0.8 > ring[1]
    assert cut[0] > 0.85 > 0.6 > cut[1]
    assert star[1] > 0.9


def test_skipped_annotations_are_counted_once(annotations: list[InstanceAnnotation], encodings: list[Encoding]) -> None:
    nothing = InstanceAnnotation(np.zeros((20, 20), bool), (2, 2, 9, 9), (20, 20), 0, False)
    flat = InstanceAnnotation([[0, 0, 1, 0, 1, 0]], (0, 0, 0, 5), (20, 20), 0, False)
    crowds = sum(a.iscrowd for a in annotations)
    tally = measure_encodings([*annotations, nothing, flat, nothing], encodings, NUM_CLASSES)
    assert tally.skipped == Counter(
        {"crowd region": crowds, "mask without a pixel in its box": 2, "box without area": 1}
    )
    assert tally.quality(0).count == len(annotations) - crowds


def test_an_outline_too_long_at_its_own_resolution_is_skipped(encodings: list[Encoding]) -> None:
    far = InstanceAnnotation([[10, 10, 2.5e6, 10, 10, 110]], (10, 10, 110, 110), (160, 160), 0, False)
    assert len(make_templates([far], 28).kept) == 1  # at S x S it is short enough
    assert measure_encodings([far], encodings, NUM_CLASSES).skipped == Counter({"mask without a pixel in its box": 1})


def test_nothing_to_measure(encodings: list[Encoding]) -> None:
    tally = measure_encodings([], encodings, NUM_CLASSES)
    assert tally.quality(0).count == 0 and np.isnan(tally.quality(0).iou) and not tally.skipped


def test_workers_do_not_matter(
    annotations: list[InstanceAnnotation],
    encodings: list[Encoding],
    tally: reconstruction.Tally,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconstruction, "CHUNK", 50)
    threads = torch.get_num_threads()
    other, one = (measure_encodings(annotations, encodings, NUM_CLASSES, workers=n) for n in (2, 1))
    assert other.sums.dtype == np.int64 and (other.sums == one.sums).all() and other.skipped == one.skipped
    assert np.allclose(other.sums, tally.sums, rtol=1e-4) and other.skipped == tally.skipped
    assert torch.get_num_threads() == threads


def test_each_class_has_its_own_dictionary(annotations: list[InstanceAnnotation]) -> None:
    dictionaries = FittedDictionaries(annotations, NUM_CLASSES, [2, 3], per_class=True)
    own = dictionaries.own_classes(14, True, 3)
    counts = Counter(a.category for a in usable(annotations))
    assert set(own) == {k for k, count in counts.items() if count >= 30} and 0 < len(own) < NUM_CLASSES
    bases = dictionaries.bases("class-pca", 14, True, 3)
    of_all = dictionaries.bases("pca", 14, True, 3)[0]
    for k, basis in enumerate(bases):
        assert (basis.components.shape == (3, 196)) and (basis is not of_all)
        assert np.allclose(basis.components, of_all.components) != (k in own)

    (encoding,) = make_encodings("class-pca", [14], [3], [True], [True], dictionaries.bases)
    tally = measure_encodings(annotations, [encoding], NUM_CLASSES)
    for k in own:
        single = PCAEncoder(dim=3, mask_size=14).eval()
        single.load_bases([bases[k]])
        alone = measure_encodings([a for a in annotations if a.category == k], [Encoding("pca", single)], NUM_CLASSES)
        assert tally.quality(0, classes=k).iou == pytest.approx(alone.quality(0).iou, rel=1e-4)


def test_every_combination_of_settings(annotations: list[InstanceAnnotation]) -> None:
    dictionaries = FittedDictionaries(annotations, NUM_CLASSES, [4, 8], per_class=True)
    both = [True, False]
    found = [
        *make_encodings("pca", [14], [4, 8], both, both, dictionaries.bases),
        *make_encodings("class-pca", [14], [4, 8], both, both, dictionaries.bases),
        *make_encodings("dct", [14], [4, 8], both, both),
    ]
    assert len({(e.family, e.sigmoid, e.whiten, e.length) for e in found}) == 24
    assert {type(e.codec) for e in found} == {PCAEncoder, ClassPCAEncoder, DCTEncoder}
    for e in found:
        assert not e.codec.training and (e.codec.sigmoid, e.codec.whiten) == (e.sigmoid, e.whiten)
    tally = measure_encodings(annotations[:60], found, NUM_CLASSES)
    # Neither choice changes what a linear encoder can say at S x S.
    for i in range(0, 24, 8):
        of_dim = [tally.quality(j).template_iou for j in range(i, i + 8, 2)]
        assert of_dim == pytest.approx([of_dim[0]] * 4, abs=1e-3)


def test_a_dictionary_needs_enough_masks(annotations: list[InstanceAnnotation]) -> None:
    dictionaries = FittedDictionaries(annotations[:20], NUM_CLASSES, [60], per_class=False)
    with pytest.raises(ValueError, match="determine"):
        dictionaries.bases("pca", 14, True, 60)


def test_the_report(tally: reconstruction.Tally, encodings: list[Encoding]) -> None:
    names = list("abcdef")
    rows = report.rows_of(tally, encodings, NUM_CLASSES)
    titles = ["pca 28x28, 30", "dct 14x14, 10", "grid 28x28, 784", "area-grid 28x28, 784", "polar, 38"]
    assert [row.title for row in report.typical(rows)] == titles
    assert report.in_first_settings(rows) == rows
    lines = report.quality_table(rows).splitlines()
    assert len(lines) == 2 + len(rows) and len({len(line) for line in lines[2:]}) == 1
    assert f"{rows[0].total.iou:.4f} {rows[0].total.boundary_iou:.4f}" in lines[2]
    assert lines[-1].split()[:5] == ["polar", "-", "38", "-", "-"]
    assert f"{rows[1].by_size[0].iou:.4f} {rows[1].by_size[1].iou:.4f}" in report.size_table(rows).splitlines()[3]
    table = report.class_table(report.typical(rows), names).splitlines()
    assert len(table) == 1 + NUM_CLASSES and table[1].split()[2] == f"{rows[1].by_class[0].iou:.4f}"
    content = report.as_json(rows, names)
    assert content[-1]["all"]["template_iou"] is None and content[0]["by_class"]["c"]["iou"] == rows[0].by_class[2].iou


def test_the_examples_are_whole_and_repeat() -> None:
    masks = example_shapes()
    assert len(masks) == sum(EXAMPLES.values())
    assert all((a == b).all() for a, b in zip(masks, example_shapes(), strict=True))
    assert any(a.shape != b.shape for a, b in zip(masks, example_shapes(seed=1), strict=True))
    for ring in masks[:2]:
        assert not ring[ring.shape[0] // 2, ring.shape[1] // 2]


def test_the_picture_of_the_examples(tmp_path: Path) -> None:
    grid = Encoding("grid", PixelEncoder(mask_size=28).eval())
    masks = example_shapes()[:2]
    assert mask_iou(reconstruct(grid, masks[0]), masks[0]) > 0.9
    assert (reconstruct(Encoding("area-grid", BinaryGrid()), masks[0]) == reconstruct(grid, masks[0])).mean() > 0.99
    draw_reconstructed(tmp_path / "new/a.png", masks, {"grid": grid, "polar": Encoding("polar", PolarRays())})
    picture = np.asarray(Image.open(tmp_path / "new/a.png").convert("RGB")).astype(int)
    orange = (picture[..., 0] > 230) & (picture[..., 2] < 90) & (picture[..., 1] > 150)
    left, right = orange[:, : picture.shape[1] * 2 // 3].sum(), orange[:, picture.shape[1] * 2 // 3 :].sum()
    assert right > 5 * left  # only the outline fills the holes


def test_real_masks_measure_as_they_did_elsewhere(real_data: Path) -> None:
    """An independent measurement gave 0.885, 0.951 and 0.955, on similar masks."""
    fit_to = read_coco_json(real_data / "coco_polygons/instances_720img.json")
    measured = [
        annotation
        for split in ("train", "val")
        for annotation in read_coco_json(real_data / f"coco/annotations/instances_{split}2017.json")
    ]
    dictionaries = FittedDictionaries(fit_to, 80, [20, 100], per_class=False)
    encodings = [
        *make_encodings("pca", [28], [20, 100], [True], [True], dictionaries.bases),
        *make_encodings("grid", [28]),
    ]
    tally = measure_encodings(measured, encodings, 80, workers=2)
    assert [tally.quality(i).iou for i in range(3)] == pytest.approx([0.885, 0.951, 0.955], abs=0.002)


def rectangle(x0: float, y0: float, x1: float, y1: float, area: float | None = None) -> InstanceAnnotation:
    return InstanceAnnotation([[x0, y0, x1, y0, x1, y1, x0, y1]], (x0, y0, x1, y1), (1000, 1000), 0, False, area)


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ((10, 20, 50, 40), (20, 40)),
        ((0, 0, 320, 7), (7, 320)),
        ((100, 100, 740, 420), (160, 320)),
        ((0, 0, 10, 1000), (320, 3)),
        ((5, 5, 5.2, 5.3), (1, 1)),
    ],
)
def test_the_shape_is_the_box_up_to_320(box: tuple[float, ...], shape: tuple[int, int]) -> None:
    mask = own_resolution_mask(rectangle(*box))
    assert mask.shape == shape and mask.dtype == bool
    if min(box[2] - box[0], box[3] - box[1]) > 1:
        assert mask.mean() > 0.9


def test_a_bit_mask_in_a_box_of_whole_pixels_is_a_crop(rng: np.random.Generator) -> None:
    bits = rng.random((60, 80)) < 0.5
    annotation = InstanceAnnotation(bits, (7, 11, 61, 43), (60, 80), 0, False)
    assert (own_resolution_mask(annotation) == bits[11:43, 7:61]).all()


def test_polygons_and_their_bit_mask_agree() -> None:
    compared = 0
    for number in range(8):
        _, found = draw_image(ShapesConfig(), (1, number))
        for a in found:
            if isinstance(a["segmentation"], list):
                x, y, w, h = (round(v) for v in a["bbox"])
                polygon = InstanceAnnotation(a["segmentation"], (x, y, x + w, y + h), (160, 160), 0, False)
                bits = mask_util.decode(mask_util.merge(mask_util.frPyObjects(a["segmentation"], 160, 160)))
                of_bits = dataclasses.replace(polygon, segmentation=bits.astype(bool))
                one, two = own_resolution_mask(polygon), own_resolution_mask(of_bits)
                assert (one & two).sum() / (one | two).sum() > 0.97
                compared += 1
    assert compared > 5


@pytest.mark.parametrize(
    ("area", "size"), [(1023.9, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (1e9, "large")]
)
def test_sizes_are_cocos(area: float, size: str) -> None:
    assert SIZES[size_of(rectangle(0, 0, 5, 5, area), np.ones((5, 5), bool))] == size


def test_without_an_area_the_mask_tells_the_size() -> None:
    annotation = dataclasses.replace(rectangle(0, 0, 40, 40), area=None)
    half = np.arange(40)[:, None].repeat(40, 1) < 20
    assert SIZES[size_of(annotation, half)] == "small" and SIZES[size_of(annotation, ~half | half)] == "medium"


@pytest.mark.parametrize(("height", "width"), [(56, 90), (28, 28), (5, 300), (1, 1), (11, 17)])
def test_stretching_is_detectron2s_pasting(rng: np.random.Generator, height: int, width: int) -> None:
    probabilities = rng.random((3, 28, 28)).astype(np.float32)
    y, x = (((torch.arange(n) + 0.5) / n * 2 - 1) for n in (height, width))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(3, -1, -1, -1)
    pasted = F.grid_sample(torch.from_numpy(probabilities)[:, None], grid, align_corners=False)[:, 0].numpy()
    stretched = stretch(probabilities, height, width)
    assert stretched.shape == (3, height, width) and (np.abs(pasted[stretched != (pasted >= 0.5)] - 0.5) < 1e-5).all()


def test_stretching_to_the_same_size_changes_nothing(rng: np.random.Generator) -> None:
    mask = rng.random((14, 14)) < 0.5
    assert (stretch(mask.astype(np.float32), 14, 14) == mask).all()


def test_exactly_one_half_counts() -> None:
    columns = np.tile([1.0, 0.0], (2, 1)).astype(np.float32)
    for width in (3, 9, 27, 81):  # the middle column lies between the two
        assert stretch(columns, width, width).sum(axis=1).max() == width // 2 + 1
