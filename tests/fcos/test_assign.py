import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from meinst_d2.fcos.assign import AssignmentRule, assign_batch, centerness
from meinst_d2.fcos.boxes import box_area, level_locations, xyxy_to_ltrb

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
    boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0]])
    matched = assign_locations(boxes, [(5, 5)], AssignmentRule((8,), ())).view(5, 5)
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
        at = (torch.cat(level_locations(SHAPES, STRIDES)) == location).all(1)
        assert matched[at].tolist() == [0]


def test_the_smallest_box_wins_then_the_first() -> None:
    boxes = torch.tensor([[0.0, 0.0, 60.0, 60.0], [10.0, 10.0, 50.0, 50.0], [10.0, 10.0, 50.0, 50.0]])
    matched = assign_locations(boxes, [(8, 8)], AssignmentRule((8,), ()))
    assert set(matched.tolist()) == {-1, 1}


def test_a_first_box_centred_on_the_left_border_disables_nothing() -> None:
    boxes = torch.tensor([[-20.0, 0.0, 20.0, 40.0], [40.0, 40.0, 80.0, 80.0]])
    matched = assign_locations(boxes, [(16, 16)], AssignmentRule((8,), ()))
    assert {0, 1} <= set(matched.tolist())


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
    assert set(positives.image_idx.tolist()) == {0, 2}
    assert (positives.gt_idx == (positives.image_idx == 2).long()).all()
    boxes = torch.cat(images)[positives.gt_idx]
    at = torch.cat(locations)[positives.location_idx]
    strides = torch.cat([torch.full((len(loc),), s) for loc, s in zip(locations, STRIDES, strict=True)])
    expected = xyxy_to_ltrb(at, boxes) / strides[positives.location_idx, None]
    assert torch.equal(positives.ltrb, expected)
    assert torch.equal(positives.centerness, centerness(expected))
    assert positives.centerness.min() > 0 and positives.centerness.max() <= 1


def test_centerness_worked_example() -> None:
    assert centerness(torch.tensor([[1.0, 2.0, 4.0, 8.0]])).item() == pytest.approx(0.25)
    assert centerness(torch.tensor([[3.0, 5.0, 3.0, 5.0]])).item() == 1
    assert centerness(torch.zeros(0, 4)).shape == (0,)


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
