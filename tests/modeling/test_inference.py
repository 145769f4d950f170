import math
from typing import get_args

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms, box_iou

from meinst_d2.encoding import PCABasis, PCAEncoder, PixelEncoder
from meinst_d2.fcos.boxes import level_locations
from meinst_d2.masks import paste_masks
from meinst_d2.modeling.head import HeadOutput
from meinst_d2.modeling.inference import LIMIT, InferenceRule, MaskOutput, PasteBox, detect, postprocess, survivors

STRIDES, SHAPES = (8, 16), [(6, 8), (3, 4)]


def random_output(seed: int = 0, dim: int | None = 4, level: float = 0.0) -> HeadOutput:
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> list[torch.Tensor]:
        return [torch.randn(2, channels, *shape, generator=generator) for shape in SHAPES]

    return HeadOutput([x + level for x in maps(3)], [x.relu() * 5 for x in maps(4)], maps(1), dim and maps(dim))


def encoder() -> PCAEncoder:
    built = PCAEncoder(dim=4, mask_size=6)
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(36, 4)))[0].T
    built.load_bases([PCABasis(rows, np.zeros(36), np.full(4, 9.0), np.ones(4))])
    return built


def run(output: HeadOutput, **options: object) -> list[Instances]:
    masks = None if output.mask_coeffs is None else encoder()
    rule = InferenceRule(**options)
    return detect(output, level_locations(SHAPES, STRIDES), STRIDES, [(48, 64), (40, 60)], rule, masks)


def test_every_detection_is_what_its_location_says() -> None:
    output = random_output()
    strides = torch.cat([torch.full((h * w,), s) for (h, w), s in zip(SHAPES, STRIDES, strict=True)])
    flat = lambda maps: torch.cat([x.flatten(2) for x in maps], 2)  # noqa: E731
    all_locations = torch.cat(level_locations(SHAPES, STRIDES))
    for i, found in enumerate(run(output, nms_thresh=0.6, max_detections=20)):
        assert len(found) == 20 and (found.scores.diff() <= 0).all()
        scores = (flat(output.cls_logits)[i].sigmoid() * flat(output.centerness)[i].sigmoid()).sqrt()  # (K, R)
        at = []
        for location, k, score in zip(found.locations, found.pred_classes, found.scores, strict=True):
            at.append(((all_locations == location).all(1) & (scores[k] == score)).nonzero()[0, 0].item())
        ltrb = flat(output.box_ltrb)[i, :, at].T * strides[at, None]
        expected = torch.cat((all_locations[at] - ltrb[:, :2], all_locations[at] + ltrb[:, 2:]), 1)
        assert torch.equal(found.pred_boxes.tensor, expected)
        torch.testing.assert_close(found.pred_masks, encoder().decode(flat(output.mask_coeffs)[i, :, at].T)[:, None])


def test_suppression_is_torchvisions_per_class() -> None:
    output = random_output(1, dim=None)
    every = run(output, nms_thresh=0.0, max_detections=0)
    kept = run(output, nms_thresh=0.1, max_detections=0)
    for before, after in zip(every, kept, strict=True):
        index = batched_nms(before.pred_boxes.tensor, before.scores, before.pred_classes, 0.1)
        assert len(index) < len(before) and torch.equal(before.pred_boxes.tensor[index], after.pred_boxes.tensor)


def test_ties_do_not_break_the_cap() -> None:
    """The published cap keeps every detection that ties with the last."""
    output = random_output(2, dim=None)
    for maps in (output.cls_logits, output.centerness):
        for x in maps:
            x.fill_(1.0)
    assert [len(found) for found in run(output, nms_thresh=0, max_detections=10)] == [10, 10]


def detections(boxes: list[list[float]], masks: torch.Tensor, size: tuple[int, int] = (40, 40)) -> Instances:
    scores, classes = torch.linspace(0.9, 0.5, len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)
    fields = {"scores": scores, "pred_classes": classes, "pred_masks": masks[:, None]}
    return Instances(size, pred_boxes=Boxes(torch.tensor(boxes)), **fields)


def test_inside_the_image_pasting_is_detectron2s() -> None:
    torch.manual_seed(0)
    found = detections([[3.0, 4.0, 30.0, 20.5], [10.2, 11.0, 39.0, 39.5]], torch.rand(2, 28, 28))
    for paste_box in ("predicted", "clipped"):
        ours = postprocess(found, 80, 100, paste_box)
        theirs = detector_postprocess(
            Instances((40, 40), **{**found.get_fields(), "pred_boxes": found.pred_boxes.clone()}), 80, 100
        )
        assert torch.equal(ours.pred_masks, theirs.pred_masks)
        assert torch.equal(ours.pred_boxes.tensor, theirs.pred_boxes.tensor)


def test_a_mask_whose_box_leaves_the_image_is_cut_not_squeezed() -> None:
    mask = torch.zeros(1, 28, 28)
    mask[:, :, :14] = 1  # the left half of a box that is half outside on the right
    found = detections([[20.0, 0.0, 60.0, 40.0]], mask)
    cut, squeezed = (postprocess(found, 40, 40, kind).pred_masks[0] for kind in ("predicted", "clipped"))
    assert cut[:, 20:].all() and not cut[:, :20].any()
    assert squeezed[:, 20:30].all() and not squeezed[:, 30:].any()
    assert postprocess(found, 40, 40).pred_boxes.tensor.tolist() == [[20, 0, 40, 40]]


def test_boxes_without_area_in_the_image_go() -> None:
    boxes = [[5.0, 5.0, 5.0, 30.0], [50.0, 50.0, 60.0, 60.0], [1.0, 1.0, 9.0, 9.0]]
    done = postprocess(detections(boxes, torch.ones(3, 28, 28)), 40, 40)
    assert len(done) == 1 and done.scores.item() == pytest.approx(0.5)


def test_detections_are_not_modified() -> None:
    found = detections([[20.0, 0.0, 60.0, 40.0]], torch.ones(1, 28, 28))
    postprocess(found, 80, 80)
    assert found.pred_boxes.tensor.tolist() == [[20, 0, 60, 40]] and found.pred_masks.shape == (1, 1, 28, 28)


@pytest.mark.parametrize("paste_box", ["predicted", "clipped"])
def test_every_kind_of_output_is_the_same_masks(paste_box: str) -> None:
    torch.manual_seed(0)
    boxes = [[-8.0, 3.0, 21.5, 50.2], [5.0, 5.0, 5.0, 9.0], [10.2, 11.0, 39.0, 39.5]]  # the second one goes
    found = detections(boxes, torch.rand(3, 28, 28))
    masks, rles, templates = (postprocess(found, 80, 100, paste_box, kind) for kind in ("bitmask", "rle", "template"))
    assert len(masks) == len(rles) == len(templates) == 2 and masks.pred_masks.any((1, 2)).all()
    assert np.array_equal(mask_util.decode(list(rles.pred_masks_rle)).transpose(2, 0, 1), masks.pred_masks)
    pasted = paste_masks(templates.pred_mask_templates, templates.pred_mask_boxes.tensor, 80, 100)
    assert torch.equal(pasted, masks.pred_masks)
    kinds = {"pred_masks", "pred_masks_rle", "pred_mask_templates", "pred_mask_boxes"}
    assert kinds & masks.get_fields().keys() == {"pred_masks"}
    assert kinds & rles.get_fields().keys() == {"pred_masks_rle"}
    assert kinds & templates.get_fields().keys() == {"pred_mask_templates", "pred_mask_boxes"}


def test_encodings_can_be_chosen_from_like_other_fields() -> None:
    found = detections([[0.0, 0.0, 20.0, 20.0], [10.0, 0.0, 40.0, 20.0]], torch.ones(2, 28, 28))
    rles = postprocess(found, 40, 40, mask_output="rle")
    kept = rles[rles.scores < 0.7]
    assert len(kept) == 1 and mask_util.area(kept.pred_masks_rle[0]) == 600 and len(type(rles).cat([rles, kept])) == 3


@pytest.mark.parametrize("kind", ["bitmask", "rle", "template"])
def test_no_detection_of_any_kind(kind: str) -> None:
    (first, _) = run(random_output(level=-20.0))
    assert len(first) == 0 and first.pred_masks.shape == (0, 1, 6, 6)
    done = postprocess(first, 96, 128, mask_output=kind)
    assert kind != "bitmask" or (done.pred_masks.shape == (0, 96, 128) and done.pred_masks.dtype == torch.bool)
    assert len(done) == 0 and len(done.get_fields()) == (6 if kind == "template" else 5)


@pytest.mark.parametrize("kind", ["bitmask", "rle", "template"])
def test_a_model_without_masks_has_none(kind: str) -> None:
    (first, _) = run(random_output(dim=None))
    done = postprocess(first, 96, 128, mask_output=kind)
    assert set(done.get_fields()) == {"pred_boxes", "scores", "pred_classes", "locations"}


COARSE_STRIDES, COARSE_SHAPES, SIZE = (8, 128), [(5, 7), (1, 1)], (40, 56)
RULE = InferenceRule()


def slow_nms(boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor, threshold: float) -> list[int]:
    """Greedy suppression as it is defined, one pair at a time in float64; of equal scores the first stays."""
    iou = box_iou(boxes.double(), boxes.double()).nan_to_num(0.0)
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda j: (-scores[j].item(), j)):
        if all(classes[i] != classes[j] or iou[i, j] <= threshold for j in kept):
            kept.append(i)
    return kept


corner = st.floats(-300, 300, width=32) | st.floats(-20_000, 20_000, width=32) | st.just(-LIMIT) | st.just(LIMIT)
side = st.sampled_from([0.0, 1.0, 8.0, 20_000.0, LIMIT]) | st.floats(0, 400, width=32)


@settings(max_examples=150, deadline=None)
@given(
    boxes=st.lists(st.tuples(corner, corner, side, side), max_size=10),
    copies=st.integers(1, 3),
    last_class=st.sampled_from([0, 1, 1202]),
    equal_scores=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_suppression_is_greedy(boxes: list, copies: int, last_class: int, equal_scores: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    xywh = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4).repeat(copies, 1)
    xywh[:, :2] += torch.rand(len(xywh), 2, generator=generator)
    xyxy = torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1)
    scores = torch.full((len(xyxy),), 0.5) if equal_scores else torch.rand(len(xyxy), generator=generator)
    classes = torch.randint(0, 2, (len(xyxy),), generator=generator) * last_class
    threshold = 0.6000123  # no overlap of these numbers is this one, so rounding decides nothing
    found = survivors(xyxy, scores, classes, InferenceRule(nms_thresh=threshold, max_detections=0))
    assert sorted(found.tolist()) == sorted(slow_nms(xyxy, scores, classes, threshold))
    assert (scores[found].diff() <= 0).all()


def test_a_box_that_leaves_the_image_suppresses_no_other_class() -> None:
    """torchvision moves the second box by 101 pixels, onto the first."""
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [-90.0, -90.0, 12.0, 12.0]])
    assert survivors(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), RULE).tolist() == [0, 1]


def test_a_huge_box_does_not_spare_the_copies_of_small_ones() -> None:
    """In float32 one pixel is lost beside class 79's offset of a hundred million."""
    boxes = torch.tensor([[10.0, 10.0, 11.0, 11.0], [10.1, 10.0, 11.1, 11.0], [-LIMIT, -LIMIT, LIMIT, LIMIT]])
    assert survivors(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([79, 79, 0]), RULE).tolist() == [0, 2]


@pytest.mark.parametrize("count", [900, 3000])
def test_thousands_of_candidates_with_one_score(count: int) -> None:
    """Below and above the number from which torchvision goes class by class."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * 400 - 50
    boxes = torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 60), 1)
    classes = torch.randint(0, 3, (count,), generator=generator)
    scores = torch.full((count,), 0.25)
    kept = survivors(boxes, scores, classes, InferenceRule(max_detections=0))
    clash = (box_iou(boxes.double(), boxes.double()) > 0.6) & (classes[:, None] == classes)
    assert 0 < len(kept) < count and len(set(kept.tolist())) == len(kept) and not clash[kept][:, kept].triu(1).any()
    assert clash[:, kept].any(1).all()  # what has gone overlaps what stays, which overlaps itself
    for cap in (len(kept) - 1, len(kept), len(kept) + 1):  # ties across the cap
        assert survivors(boxes, scores, classes, InferenceRule(max_detections=cap)).tolist() == kept[:cap].tolist()


def output_of(cls: float, ltrb: float, centerness: float, coeff: float) -> HeadOutput:
    """The same everywhere, but for every second location and the first side, which are ordinary."""

    def maps(channels: int, extreme: float, ordinary: float) -> list[torch.Tensor]:
        levels = [torch.full((1, channels, *shape), ordinary) for shape in COARSE_SHAPES]
        for level in levels:
            level.view(1, channels, -1)[:, :, ::2] = extreme
        return levels

    boxes = maps(4, ltrb, 1.5)
    for level in boxes:
        level[:, 0] = 1.0
    return HeadOutput(maps(2, cls, 0.5), boxes, maps(1, centerness, 1.0), maps(16, coeff, -2.0))


def detect_all(output: HeadOutput, **options: object) -> Instances:
    locations = level_locations(COARSE_SHAPES, COARSE_STRIDES)
    (found,) = detect(output, locations, COARSE_STRIDES, [SIZE], InferenceRule(**options), PixelEncoder(mask_size=4))
    return found


def assert_finite(found: Instances) -> None:
    for name, value in found.get_fields().items():
        values = value.tensor if name.endswith("boxes") else value
        if isinstance(values, torch.Tensor) and values.is_floating_point():
            assert values.isfinite().all(), name


HALF_MAX = torch.finfo(torch.float16).max
numbers = st.sampled_from([0.0, 1e4, -1e4, HALF_MAX, 3e38, math.inf, -math.inf, math.nan]) | st.floats(width=16)


@settings(max_examples=150, deadline=None)
@given(
    extremes=st.tuples(*[numbers] * 4),
    nms_thresh=st.sampled_from([0.0, 0.6]),
    with_centerness=st.booleans(),
    mask_output=st.sampled_from(get_args(MaskOutput)),
    paste_box=st.sampled_from(get_args(PasteBox)),
)
def test_nothing_but_finite_numbers_leaves(
    extremes: tuple[float, ...], nms_thresh: float, with_centerness: bool, mask_output: str, paste_box: str
) -> None:
    """Not even where half precision overflowed in the head."""
    cls, ltrb, centerness, coeff = extremes
    output = output_of(cls, max(ltrb, 0.0) if not math.isnan(ltrb) else ltrb, centerness, coeff)
    found = detect_all(output, nms_thresh=nms_thresh, thresh_with_centerness=with_centerness, max_detections=50)
    assert_finite(found)
    assert 0 < len(found) <= 50 and ((found.scores >= 0) & (found.scores <= 1)).all()
    done = postprocess(found, 37, 111, paste_box, mask_output)
    assert_finite(done)
    boxes = done.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor([111.0, 37.0])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_ordinary_locations_are_as_without_extreme_ones() -> None:
    """Numbers that are none at one location do not change the detections of another."""
    alone = detect_all(output_of(-1e4, 1.5, 0.0, 0.0), nms_thresh=0.0, max_detections=0)
    among = detect_all(output_of(1e4, math.inf, math.nan, math.nan), nms_thresh=0.0, max_detections=0)
    ordinary = among.scores > 0
    assert torch.equal(among.pred_boxes.tensor[ordinary], alone.pred_boxes.tensor) and len(alone) == 34
    assert torch.equal(among.pred_masks[ordinary], alone.pred_masks)


def test_distances_of_real_objects_are_not_cut() -> None:
    """20,000 pixels on either side, at the coarsest stride."""
    found = detect_all(output_of(0.0, 20_000 / 128, 1.0, 3.0), nms_thresh=0.0, max_detections=0)
    assert found.pred_boxes.tensor.max() == 64 + 20_000 and found.pred_boxes.tensor.min() == 64 - 20_000
