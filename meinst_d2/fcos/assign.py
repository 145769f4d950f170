"""Which location is assigned to which instance (FCOS with centre sampling).

A location is positive for an instance when it lies strictly inside the centre region of its box and when the farthest
side of the box is at a distance that its level is responsible for. Of several instances, the one with the smallest box
wins, then the first. Only the cells that can be positive are looked at, all images at once, so the cost follows the
number of instances and of their cells: nothing here has R entries.

Symbols:
    N images, L levels, R locations of an image over all levels
    M instances of the batch, one image after another
    Q (instance, level) pairs that may have positives, C candidate (location, instance) pairs
    P positive locations of the batch
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meinst_d2.fcos.boxes import box_area, xyxy_to_ltrb


@dataclass(frozen=True)
class AssignmentRule:
    """What makes a location positive.

    Attributes:
        strides: (L,) input pixels per cell.
        size_bounds: (L - 1,) distances in input pixels between neighbouring levels; level l is responsible for
            farthest-side distances from the previous bound up to its own, both included.
        center_radius: half the side of the centre region, in strides; None takes the whole box.
    """

    strides: tuple[int, ...]
    size_bounds: tuple[float, ...]
    center_radius: float | None = 1.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # configs hold lists
        object.__setattr__(self, "size_bounds", tuple(self.size_bounds))
        if len(self.size_bounds) != len(self.strides) - 1:
            raise ValueError(
                f"{len(self.strides)} feature levels need {len(self.strides) - 1} sizes of interest, "
                f"got {list(self.size_bounds)}"
            )
        if any(low >= high for low, high in zip(self.size_bounds, self.size_bounds[1:], strict=False)):
            raise ValueError(f"the sizes of interest must rise: {list(self.size_bounds)}")
        if self.center_radius is not None and self.center_radius <= 0:
            raise ValueError(f"the radius of centre sampling must be positive, got {self.center_radius}")

    def size_ranges(self) -> Tensor:
        """(L, 2) float32, the closed range of farthest-side distances of each level."""
        return torch.tensor(list(zip((-1.0, *self.size_bounds), (*self.size_bounds, math.inf), strict=True)))


@dataclass(frozen=True)
class Positives:
    """The positive locations of a batch, ordered by image, then location.

    Attributes:
        image_idx: (P,) int64.
        location_idx: (P,) int64, within the image, over all levels.
        gt_idx: (P,) int64, into the instances of the batch, one image after another.
        ltrb: (P, 4) float32, distances to the sides of the instance's box, in strides.
        centerness: (P,) float32 in (0, 1].
    """

    image_idx: Tensor
    location_idx: Tensor
    gt_idx: Tensor
    ltrb: Tensor
    centerness: Tensor

    def __len__(self) -> int:
        return len(self.image_idx)

    def to(self, device: torch.device) -> Positives:
        """A copy on another device; from pinned memory, without waiting."""
        tensors = (self.image_idx, self.location_idx, self.gt_idx, self.ltrb, self.centerness)
        return Positives(*(_move(tensor, device) for tensor in tensors))


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@torch.no_grad()
def assign_batch(
    gt_boxes_per_image: Sequence[Tensor], level_shapes: Sequence[tuple[int, int]], rule: AssignmentRule
) -> Positives:
    """Assign a batch and compute the box targets of its positive locations.

    Images are told apart by numbering the locations of the batch: image * R + location.

    Args:
        gt_boxes_per_image: N tensors (M_i, 4), ``xyxy`` in input pixels; M_i may be 0.
        level_shapes: (height, width) of each level.
        rule: what makes a location positive.
    """
    boxes = torch.cat(list(gt_boxes_per_image)).float()  # (M, 4)
    candidates = _candidates(boxes, level_shapes, rule)
    num_gt = torch.tensor([len(boxes) for boxes in gt_boxes_per_image], device=boxes.device)
    image_of_gt = torch.arange(len(num_gt), device=boxes.device).repeat_interleave(num_gt)  # (M,)
    num_locations = sum(height * width for height, width in level_shapes)  # R
    cell = image_of_gt[candidates.gt_idx] * num_locations + candidates.location_idx  # (C,)

    # Several instances may want a location. Sorted by location and then by the rank of their box, the first one of
    # each location wins. A stable rank, instead of the area, leaves no ties: the first of equal boxes wins.
    by_area = box_area(boxes).argsort(stable=True)  # (M,)
    rank = torch.empty_like(by_area)  # (M,) 0 for the smallest box
    rank[by_area] = torch.arange(len(by_area), device=boxes.device)
    order = (cell * len(by_area) + rank[candidates.gt_idx]).argsort()  # (C,)
    cell = cell[order]
    wins = torch.ones_like(cell, dtype=torch.bool)
    wins[1:] = cell[1:] != cell[:-1]
    winner = order[wins]  # (P,)

    gt_idx = candidates.gt_idx[winner]  # (P,)
    ltrb = xyxy_to_ltrb(candidates.xy[winner], boxes[gt_idx]) / candidates.stride[winner, None]  # (P, 4) in strides
    return Positives(image_of_gt[gt_idx], candidates.location_idx[winner], gt_idx, ltrb, centerness(ltrb))


@dataclass(frozen=True)
class _Candidates:
    """The (location, instance) pairs of a batch that satisfy a rule, in any order.

    Attributes:
        gt_idx: (C,) int64.
        location_idx: (C,) int64, within the image, over all levels.
        xy: (C, 2) float32, the location in input pixels.
        stride: (C,) int64, of the location's level.
    """

    gt_idx: Tensor
    location_idx: Tensor
    xy: Tensor
    stride: Tensor


def _candidates(boxes: Tensor, level_shapes: Sequence[tuple[int, int]], rule: AssignmentRule) -> _Candidates:
    device = boxes.device
    areas = [height * width for height, width in level_shapes]
    first_of_level = torch.tensor([sum(areas[:level]) for level in range(len(areas))], device=device)  # (L,)
    shapes = torch.tensor([(width, height) for height, width in level_shapes], device=device)  # (L, 2)
    low, high = rule.size_ranges().to(device).unbind(1)  # (L,)

    # Which levels may have positives of which instance. From inside a box, its farthest side is between half of the
    # longer side and all of it away; a pixel of slack covers rounding.
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)  # (M, 1)
    gt_idx, level = ((longer + 1 >= low) & (longer / 2 - 1 <= high)).nonzero(as_tuple=True)  # (Q,) pairs
    stride = torch.tensor(rule.strides, device=device)[level]  # (Q,)
    regions = _center_regions(boxes[gt_idx], stride, rule.center_radius)  # (Q, 4)
    # First and one-past-last cell of each region, one cell wider than needed: the exact test comes below. Cell j of a
    # level lies at j * stride + stride // 2, so a position x falls into cell (x - stride // 2) / stride.
    # No map has as many cells as the bound, and what an integer cannot hold becomes an arbitrary one.
    corners = ((regions - (stride // 2)[:, None]) / stride[:, None]).clamp(-1, 2**30)  # (Q, 4)
    first = corners[:, :2].floor().long().clamp(min=0)  # (Q, 2) column, row
    sizes = (torch.minimum(corners[:, 2:].ceil().long() + 1, shapes[level]) - first).clamp(min=0)  # (Q, 2)

    # Enumerate the cells of all regions, one region after another, row by row. "nth" counts within a region.
    counts = sizes.prod(dim=1)  # (Q,)
    pair = torch.arange(len(counts), device=device).repeat_interleave(counts)  # (cells,) into the Q pairs
    nth = torch.arange(len(pair), device=device) - (counts.cumsum(0) - counts)[pair]
    width = sizes[pair, 0]
    cells = first[pair] + torch.stack((nth % width, nth // width), dim=1)  # (cells, 2) column, row

    # The exact test, of every cell.
    gt_idx, level, stride = gt_idx[pair], level[pair], stride[pair]
    xy = (cells * stride[:, None] + (stride // 2)[:, None]).float()  # (cells, 2)
    farthest = xyxy_to_ltrb(xy, boxes[gt_idx]).amax(dim=1)
    keep = (farthest >= low[level]) & (farthest <= high[level]) & (xyxy_to_ltrb(xy, regions[pair]).amin(dim=1) > 0)
    location_idx = first_of_level[level] + cells[:, 1] * shapes[level, 0] + cells[:, 0]
    return _Candidates(gt_idx[keep], location_idx[keep], xy[keep], stride[keep])


def _center_regions(boxes: Tensor, stride: Tensor, radius: float | None) -> Tensor:
    """(Q, 4) boxes that a location must be strictly inside of, for boxes at levels of these strides."""
    if radius is None:
        return boxes
    # The square around the centre, cut where it would leave the box.
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2  # (Q, 2)
    reach = (stride * radius)[:, None]  # (Q, 1)
    return torch.cat(
        (torch.maximum(centers - reach, boxes[:, :2]), torch.minimum(centers + reach, boxes[:, 2:])), dim=1
    )


def centerness(ltrb: Tensor) -> Tensor:
    """How central a location is in its box: 1 in the middle, 0 on a side.

    Args:
        ltrb: (..., 4), positive distances in any unit.

    Returns:
        (...), sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b)).
    """
    horizontal, vertical = ltrb[..., 0::2], ltrb[..., 1::2]
    ratio = (horizontal.amin(-1) / horizontal.amax(-1)) * (vertical.amin(-1) / vertical.amax(-1))
    return ratio.sqrt()
