"""Assignment at the ends of the sizes: one pixel to 20,000, without area, hundreds on one place."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.fcos.assign import AssignmentRule, assign_batch
from meinst_d2.fcos.losses import BoxLossType, iou_loss
from tests.fcos.test_assign import RULE, SHAPES, STRIDES, assign_locations, dense_assignment

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
def test_boxes_of_any_size_or_turned_round(
    boxes: list[tuple[float, ...]], copies: int, radius: float | None, whole: bool
) -> None:
    xywh = torch.tensor(boxes).reshape(-1, 4).repeat(copies, 1)
    if whole:  # ties of areas, and sides on locations
        xywh = xywh.round()
    check(torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1), SHAPES, radius)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("shapes", THIN.values(), ids=THIN.keys())
def test_images_of_20000_pixels_by_one_and_of_one_pixel(shapes: list[tuple[int, int]], radius: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    long = torch.rand(30, 2, generator=generator).sort(1).values * 20_000
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
    boxes = torch.cat((nested, nested.flip(0), around, around))[torch.randperm(800, generator=generator)]
    check(boxes, SHAPES, radius)


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
