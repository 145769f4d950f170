import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meinst_d2.fcos.assign import AssignmentRule, assign_batch, centerness
from meinst_d2.fcos.boxes import box_area, level_locations, xyxy_to_ltrb
from meinst_d2.fcos.losses import BoxLossType, iou_loss

STRIDES = (8, 16, 32, 64, 128)
RULE = AssignmentRule(STRIDES, (64, 128, 256, 512))
SHAPES = [(32, 40), (16, 20), (8, 10), (4, 5), (2, 3)]


def dense_assignment(boxes: Tensor, shapes: list[tuple[int, int]], rule: AssignmentRule) -> Tensor:
    """The whole locations x instances table, as the rule reads."""
    locations = level_locations(shapes, rule.strides)
    matched = []
    for level_locations_, stride, (low, high) in zip(locations, rule.strides, rule.size_ranges().tolist(), strict=True):
        regions = boxes
        if rule.center_radius is not None:
            center, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, stride * rule.center_radius
            regions = torch.cat((torch.max(center - reach, boxes[:, :2]), torch.min(center + reach, boxes[:, 2:])), 1)
        inside = xyxy_to_ltrb(level_locations_[:, None], regions[None]).amin(2) > 0  # (R_l, M)
        farthest = xyxy_to_ltrb(level_locations_[:, None], boxes[None]).amax(2)
        candidate = inside & (farthest >= low) & (farthest <= high)
        area = box_area(boxes)[None].expand(len(level_locations_), -1).clone()
        area[~candidate] = math.inf
        best, index = area.min(1)
        index[best == math.inf] = -1
        matched.append(index)
    return torch.cat(matched)


def assign_locations(boxes: Tensor, shapes: list[tuple[int, int]], rule: AssignmentRule) -> Tensor:
    """(R,) the instance of each location of one image, -1 for none."""
    positives = assign_batch([boxes], shapes, rule)
    matched = torch.full((sum(height * width for height, width in shapes),), -1)
    matched[positives.location_idx] = positives.gt_idx
    return matched


def test_worked_example() -> None:
    # Stride 8, radius 1.5: the centre (20, 20) of the box reaches the cells at 12 and 20 and 28, strictly within 12.
    matched = assign_locations(torch.tensor([[0.0, 0.0, 40.0, 40.0]]), [(5, 5)], AssignmentRule((8,), ())).view(5, 5)
    expected = torch.full((5, 5), -1)
    expected[1:4, 1:4] = 0
    assert torch.equal(matched, expected)


def test_a_location_on_a_side_is_outside() -> None:
    boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0]])  # cells at 4, 12, 20
    matched = assign_locations(boxes, [(3, 3)], AssignmentRule((8,), (), None)).view(3, 3)
    assert (matched != -1).nonzero().tolist() == [[1, 1]]


def test_a_farthest_side_on_a_bound_is_positive_on_both_levels() -> None:
    # The box reaches 64 pixels from (100, 100), a location of stride 8; and from (104, 104), one of stride 16.
    for location in (100.0, 104.0):
        box = torch.tensor([[location - 60, location - 60, location + 64, location + 60]])
        matched = assign_locations(box, SHAPES, AssignmentRule(STRIDES, RULE.size_bounds, None))
        assert matched[(torch.cat(level_locations(SHAPES, STRIDES)) == location).all(1)].tolist() == [0]


def test_the_smallest_box_wins_then_the_first() -> None:
    boxes = torch.tensor([[0.0, 0.0, 60.0, 60.0], [10.0, 10.0, 50.0, 50.0], [10.0, 10.0, 50.0, 50.0]])
    assert set(assign_locations(boxes, [(8, 8)], AssignmentRule((8,), ())).tolist()) == {-1, 1}


def test_a_first_box_centred_on_the_left_border_disables_nothing() -> None:
    boxes = torch.tensor([[-20.0, 0.0, 20.0, 40.0], [40.0, 40.0, 80.0, 80.0]])
    assert {0, 1} <= set(assign_locations(boxes, [(16, 16)], AssignmentRule((8,), ())).tolist())


def test_no_instances_and_instances_too_small_for_any_location() -> None:
    assert (assign_locations(torch.zeros(0, 4), SHAPES, RULE) == -1).all()
    assert (assign_locations(torch.tensor([[5.0, 5.0, 6.0, 6.0]]), SHAPES, RULE) == -1).all()
    assert (assign_locations(torch.tensor([[5.0, 5.0, 5.0, 5.0]]), SHAPES, RULE) == -1).all()
    positives = assign_batch([torch.zeros(0, 4)] * 2, SHAPES, RULE)
    assert len(positives) == 0 and positives.ltrb.shape == (0, 4)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_a_batch_is_its_images_one_after_another(seed: int, counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = []
    for count in counts:
        corners = torch.rand(count, 2, generator=generator) * 280
        images.append(torch.cat((corners, corners + torch.rand(count, 2, generator=generator) ** 2 * 300), 1))
    positives = assign_batch(images, SHAPES, RULE)
    first = 0
    for i, boxes in enumerate(images):
        alone, here = assign_batch([boxes], SHAPES, RULE), positives.image_idx == i
        assert torch.equal(positives.location_idx[here], alone.location_idx)
        assert torch.equal(positives.gt_idx[here], alone.gt_idx + first)
        assert torch.equal(positives.ltrb[here], alone.ltrb)
        first += len(boxes)
    assert (positives.image_idx.diff() >= 0).all()


def test_positives_index_instances_of_the_whole_batch() -> None:
    images = [torch.tensor([[0.0, 0.0, 60.0, 60.0]]), torch.zeros(0, 4), torch.tensor([[100.0, 100.0, 180.0, 150.0]])]
    locations = level_locations(SHAPES, STRIDES)
    positives = assign_batch(images, SHAPES, RULE)
    assert set(positives.image_idx.tolist()) == {0, 2} and (positives.gt_idx == (positives.image_idx == 2).long()).all()
    boxes = torch.cat(images)[positives.gt_idx]
    at = torch.cat(locations)[positives.location_idx]
    strides = torch.cat([torch.full((len(loc),), s) for loc, s in zip(locations, STRIDES, strict=True)])
    expected = xyxy_to_ltrb(at, boxes) / strides[positives.location_idx, None]
    assert torch.equal(positives.ltrb, expected) and torch.equal(positives.centerness, centerness(expected))
    assert positives.centerness.min() > 0 and positives.centerness.max() <= 1


def test_centerness_worked_example() -> None:
    assert centerness(torch.tensor([[1.0, 2.0, 4.0, 8.0]])).item() == pytest.approx(0.25)
    assert centerness(torch.tensor([[3.0, 5.0, 3.0, 5.0]])).item() == 1 and centerness(torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8, 16), (64, 128)), "2 feature levels need 1 sizes of interest"),
        (((8, 16, 32), (128, 64)), "must rise"),
        (((8,), (), 0.0), "radius of centre sampling must be positive"),
    ],
)
def test_impossible_rules_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AssignmentRule(*arguments)


RADII = [None, 0.01, 1.5, 1000.0]
THIN = {
    "tall": [(2500, 1), (1250, 1), (625, 1), (313, 1), (157, 1)],
    "wide": [(1, 2500), (1, 1250), (1, 625), (1, 313), (1, 157)],
    "one cell": [(1, 1)] * 5,
    "no cells": [(0, 3)] * 5,
}


def check(boxes: torch.Tensor, shapes: list[tuple[int, int]], radius: float | None) -> None:
    rule = AssignmentRule(STRIDES, RULE.size_bounds, radius)
    assert torch.equal(assign_locations(boxes, shapes, rule), dense_assignment(boxes, shapes, rule))
    positives = assign_batch([boxes], shapes, rule)
    assert (positives.ltrb > 0).all() and positives.ltrb.isfinite().all()
    assert (positives.centerness > 0).all() and (positives.centerness <= 1).all()
    for kind in get_args(BoxLossType):
        assert iou_loss(torch.zeros_like(positives.ltrb), positives.ltrb, kind).isfinite().all()


coordinate = st.floats(-20_000, 20_000, width=32) | st.integers(-40, 400).map(float) | st.floats(-40, 360, width=32)
side = st.floats(-300, 20_000, width=32) | st.sampled_from([0.0, 1.0, -1.0, 8.0, 64.0, 128.0, 256.0, 20_000.0, 1e-3])
side |= st.floats(0, 400, width=32)


@settings(max_examples=250, deadline=None)
@given(
    boxes=st.lists(st.tuples(coordinate, coordinate, side, side), min_size=1, max_size=10),
    copies=st.integers(1, 3),
    radius=st.sampled_from([*RADII, 0.5, 1.0, 2.5]),
    whole=st.booleans(),
)
def test_boxes_of_any_size_or_turned_round(boxes: list, copies: int, radius: float | None, whole: bool) -> None:
    xywh = torch.tensor(boxes).reshape(-1, 4).repeat(copies, 1)
    if whole:  # ties of areas, and sides on locations
        xywh = xywh.round()
    check(torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1), SHAPES, radius)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("shapes", THIN.values(), ids=THIN.keys())
def test_images_of_20000_pixels_by_one_and_of_one_pixel(shapes: list[tuple[int, int]], radius: float | None) -> None:
    long = torch.rand(30, 2, generator=torch.Generator().manual_seed(0)).sort(1).values * 20_000
    short = torch.tensor([0.0, 8.0]).expand(30, 2)
    tall = torch.stack((short[:, 0], long[:, 0], short[:, 1], long[:, 1]), 1)
    wide = tall[:, [1, 0, 3, 2]]
    whole = torch.tensor([[0.0, 0.0, 20_000.0, 20_000.0], [0.0, 0.0, 1.0, 1.0], [3.0, 3.0, 5.0, 5.0]])
    check(torch.cat((tall, wide, whole)), shapes, radius)


@pytest.mark.parametrize("radius", RADII)
def test_hundreds_of_overlapping_instances(radius: float | None) -> None:
    """On one place: equal ones, of which the first wins, and nested ones, of which the smallest."""
    generator = torch.Generator().manual_seed(1)
    grown = torch.rand(200, 1, generator=generator) * torch.tensor([-1.0, -1, 1, 1])
    nested = torch.tensor([100.0, 90.0, 180.0, 170.0]) + grown
    around = torch.rand(200, 4, generator=generator) * 100 + torch.tensor([0.0, 0, 100, 100])
    check(torch.cat((nested, nested.flip(0), around, around))[torch.randperm(800, generator=generator)], SHAPES, radius)


def test_a_location_has_one_instance_in_a_crowd() -> None:
    boxes = torch.tensor([[40.0, 40.0, 100.0, 100.0]]).repeat(500, 1)
    positives = assign_batch([boxes, boxes], SHAPES, RULE)
    assert set(positives.gt_idx.tolist()) == {0, 500}
    assert len(set(zip(positives.image_idx.tolist(), positives.location_idx.tolist(), strict=True))) == len(positives)


@pytest.mark.parametrize("reach", [1e5, 1e12, 1e25, 3e38])
def test_a_box_beyond_all_integers_covers_the_image(reach: float) -> None:
    positives = assign_batch([torch.tensor([[-reach, -reach, reach, reach]])], [(3, 4)], AssignmentRule((8,), (), None))
    assert positives.location_idx.tolist() == list(range(12))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.integers(-3, 3))
def test_moving_boxes_by_the_coarsest_stride_moves_the_locations(seed: int, shift: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(6, 2, generator=generator) * 300 + 400).round()
    boxes = torch.cat((corners, corners + (torch.rand(6, 2, generator=generator) * 300).round()), 1)
    sides = [1536 // s for s in STRIDES]
    before, after = (assign_locations(b, [(n, n) for n in sides], RULE) for b in (boxes, boxes + 128 * shift))
    areas = [n * n for n in sides]
    for level, moved, stride, n in zip(before.split(areas), after.split(areas), STRIDES, sides, strict=True):
        cells = shift * 128 // stride
        assert torch.equal(level.view(n, n).roll((cells, cells), (0, 1)), moved.view(n, n))
