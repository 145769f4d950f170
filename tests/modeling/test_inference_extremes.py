"""Detections of extreme predictions: huge and empty boxes, ties, thousands of candidates, half precision overflowed."""

import math
from typing import get_args

import pytest
import torch
from detectron2.structures import Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from meinst_d2.encoding import PixelEncoder
from meinst_d2.fcos.boxes import level_locations
from meinst_d2.modeling.head import HeadOutput
from meinst_d2.modeling.inference import LIMIT, InferenceRule, MaskOutput, PasteBox, _survivors, detect, postprocess

STRIDES, SHAPES, SIZE = (8, 128), [(5, 7), (1, 1)], (40, 56)
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
def test_suppression_is_the_greedy_one(
    boxes: list[tuple[float, ...]], copies: int, last_class: int, equal_scores: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    xywh = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4).repeat(copies, 1)
    xywh[:, :2] += torch.rand(len(xywh), 2, generator=generator)
    xyxy = torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1)
    scores = torch.full((len(xyxy),), 0.5) if equal_scores else torch.rand(len(xyxy), generator=generator)
    classes = torch.randint(0, 2, (len(xyxy),), generator=generator) * last_class
    threshold = 0.6000123  # no overlap of these numbers is this one, so rounding decides nothing
    found = _survivors(xyxy, scores, classes, InferenceRule(nms_thresh=threshold, max_detections=0))
    assert sorted(found.tolist()) == sorted(slow_nms(xyxy, scores, classes, threshold))
    assert (scores[found].diff() <= 0).all()


def test_a_box_that_leaves_the_image_suppresses_no_other_class() -> None:
    """torchvision moves the second box by 101 pixels, onto the first."""
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [-90.0, -90.0, 12.0, 12.0]])
    assert _survivors(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), RULE).tolist() == [0, 1]


def test_a_huge_box_does_not_spare_the_copies_of_small_ones() -> None:
    """In float32 one pixel is lost beside class 79's offset of a hundred million."""
    small = [[10.0, 10.0, 11.0, 11.0], [10.1, 10.0, 11.1, 11.0]]
    boxes = torch.tensor([*small, [-LIMIT, -LIMIT, LIMIT, LIMIT]])
    found = _survivors(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([79, 79, 0]), RULE)
    assert found.tolist() == [0, 2]


@pytest.mark.parametrize("count", [900, 3000])
def test_thousands_of_candidates_with_one_score(count: int) -> None:
    """Below and above the number from which torchvision goes class by class."""
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * 400 - 50
    boxes = torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 60), 1)
    classes = torch.randint(0, 3, (count,), generator=generator)
    scores = torch.full((count,), 0.25)
    kept = _survivors(boxes, scores, classes, InferenceRule(max_detections=0))
    iou = box_iou(boxes.double(), boxes.double())
    clash = (iou > 0.6) & (classes[:, None] == classes)
    assert 0 < len(kept) < count and len(set(kept.tolist())) == len(kept)
    assert not clash[kept][:, kept].triu(1).any()
    assert clash[:, kept].any(1).all()  # what has gone overlaps what stays, which overlaps itself
    for cap in (len(kept) - 1, len(kept), len(kept) + 1):  # ties across the cap
        capped = _survivors(boxes, scores, classes, InferenceRule(max_detections=cap))
        assert capped.tolist() == kept[:cap].tolist()


def output_of(cls: float, ltrb: float, centerness: float, coeff: float) -> HeadOutput:
    """The same everywhere, but for every second location and the first side, which are ordinary."""

    def maps(channels: int, extreme: float, ordinary: float) -> list[torch.Tensor]:
        levels = [torch.full((1, channels, *shape), ordinary) for shape in SHAPES]
        for level in levels:
            level.view(1, channels, -1)[:, :, ::2] = extreme
        return levels

    boxes = maps(4, ltrb, 1.5)
    for level in boxes:
        level[:, 0] = 1.0
    return HeadOutput(maps(2, cls, 0.5), boxes, maps(1, centerness, 1.0), maps(16, coeff, -2.0))


def detections(output: HeadOutput, **options: object) -> Instances:
    locations = level_locations(SHAPES, STRIDES)
    (found,) = detect(output, locations, STRIDES, [SIZE], InferenceRule(**options), PixelEncoder(mask_size=4))
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
    cls=numbers,
    ltrb=numbers,
    centerness=numbers,
    coeff=numbers,
    nms_thresh=st.sampled_from([0.0, 0.6]),
    with_centerness=st.booleans(),
    mask_output=st.sampled_from(get_args(MaskOutput)),
    paste_box=st.sampled_from(get_args(PasteBox)),
)
def test_nothing_but_finite_numbers_leaves(
    cls: float,
    ltrb: float,
    centerness: float,
    coeff: float,
    nms_thresh: float,
    with_centerness: bool,
    mask_output: str,
    paste_box: str,
) -> None:
    """Not even where half precision overflowed in the head."""
    output = output_of(cls, max(ltrb, 0.0) if not math.isnan(ltrb) else ltrb, centerness, coeff)
    found = detections(output, nms_thresh=nms_thresh, thresh_with_centerness=with_centerness, max_detections=50)
    assert_finite(found)
    assert 0 < len(found) <= 50
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    done = postprocess(found, 37, 111, paste_box, mask_output)
    assert_finite(done)
    boxes = done.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor([111.0, 37.0])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_ordinary_locations_are_as_without_extreme_ones() -> None:
    """Numbers that are none at one location do not change the detections of another."""
    alone = detections(output_of(-1e4, 1.5, 0.0, 0.0), nms_thresh=0.0, max_detections=0)
    among = detections(output_of(1e4, math.inf, math.nan, math.nan), nms_thresh=0.0, max_detections=0)
    ordinary = among.scores > 0
    assert torch.equal(among.pred_boxes.tensor[ordinary], alone.pred_boxes.tensor) and len(alone) == 34
    assert torch.equal(among.pred_masks[ordinary], alone.pred_masks)


def test_distances_of_real_objects_are_not_cut() -> None:
    """20,000 pixels on either side, at the coarsest stride."""
    output = output_of(0.0, 20_000 / 128, 1.0, 3.0)
    found = detections(output, nms_thresh=0.0, max_detections=0)
    assert found.pred_boxes.tensor.max() == 64 + 20_000 and found.pred_boxes.tensor.min() == 64 - 20_000
