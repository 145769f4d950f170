"""Which location answers for which instance (FCOS with centre sampling).

Symbols: L levels, R locations of an image over all levels, M instances of an image, C candidate (location, instance)
pairs. A location is positive for an instance when it lies strictly inside the centre region of its box and when the
farthest side of the box is at a distance that its level is responsible for. Of several instances, the one with the
smallest box wins, then the first.

Only the cells that can be positive are looked at, so the cost follows the number of instances and of their cells, not
R * M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meinst_d2.fcos.boxes import box_area, xyxy_to_ltrb

BACKGROUND = -1


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


@torch.no_grad()
def assign_locations(gt_boxes: Tensor, level_shapes: Sequence[tuple[int, int]], rule: AssignmentRule) -> Tensor:
    """Assign the locations of one image.

    Args:
        gt_boxes: (M, 4) ``xyxy`` in input pixels; M may be 0.
        level_shapes: (height, width) of each level.
        rule: what makes a location positive.

    Returns:
        (R,) int64, the index of the instance each location answers for, or ``BACKGROUND``; levels one after another,
        rows first.
    """
    num_locations = sum(height * width for height, width in level_shapes)
    matched_gt_idx = torch.full((num_locations,), BACKGROUND, dtype=torch.int64, device=gt_boxes.device)
    if len(gt_boxes) == 0:
        return matched_gt_idx
    location_idx, gt_idx = _candidates(gt_boxes.float(), level_shapes, rule)  # (C,), (C,)
    by_area = box_area(gt_boxes.float()).argsort(stable=True)  # (M,)
    rank = torch.empty_like(by_area)
    rank[by_area] = torch.arange(len(by_area), device=rank.device)
    best = torch.full_like(matched_gt_idx, len(by_area))
    best.scatter_reduce_(0, location_idx, rank[gt_idx], "amin")
    positive = best < len(by_area)
    matched_gt_idx[positive] = by_area[best[positive]]
    return matched_gt_idx


def _candidates(boxes: Tensor, level_shapes: Sequence[tuple[int, int]], rule: AssignmentRule) -> tuple[Tensor, Tensor]:
    """The (location, instance) pairs that satisfy the rule: two (C,) int64 tensors."""
    device = boxes.device
    strides = torch.tensor(rule.strides, device=device)  # (L,)
    shapes = torch.tensor(list(level_shapes), device=device)  # (L, 2) height, width
    first_location = torch.cat((shapes.new_zeros(1), shapes.prod(dim=1).cumsum(0)[:-1]))  # (L,)
    ranges = rule.size_ranges().to(device)  # (L, 2)

    regions = _center_regions(boxes, strides, rule.center_radius)  # (M, L, 4)
    # First and one-past-last cell of each region, one cell wider than needed: the exact test comes below.
    corners = (regions - (strides // 2)[:, None]) / strides[:, None]
    first = corners[..., :2].floor().long().clamp(min=0)  # (M, L, 2) column, row
    last = torch.minimum(corners[..., 2:].ceil().long() + 1, shapes.flip(1))
    sizes = (last - first).clamp(min=0)  # (M, L, 2)
    # The farthest side is between half of the longer side and all of it away; a pixel of slack covers rounding.
    longer = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True)  # (M, 1)
    sizes[(longer + 1 < ranges[:, 0]) | (longer / 2 - 1 > ranges[:, 1])] = 0

    pair_gt, pair_level = (sizes.prod(dim=2) > 0).nonzero(as_tuple=True)  # (Q,) pairs of instance and level
    pair_first, pair_sizes = first[pair_gt, pair_level], sizes[pair_gt, pair_level]  # (Q, 2)
    counts = pair_sizes.prod(dim=1)
    pair = torch.arange(len(counts), device=device).repeat_interleave(counts)  # (C,)
    nth = torch.arange(len(pair), device=device) - (counts.cumsum(0) - counts)[pair]
    column = pair_first[pair, 0] + nth % pair_sizes[pair, 0]
    row = pair_first[pair, 1] + nth // pair_sizes[pair, 0]
    gt_idx, level = pair_gt[pair], pair_level[pair]

    locations = (torch.stack((column, row), dim=1) * strides[level, None] + (strides[level, None] // 2)).float()
    inside = xyxy_to_ltrb(locations, regions[gt_idx, level]).amin(dim=1) > 0
    farthest = xyxy_to_ltrb(locations, boxes[gt_idx]).amax(dim=1)
    keep = inside & (farthest >= ranges[level, 0]) & (farthest <= ranges[level, 1])
    location_idx = first_location[level] + row * shapes[level, 1] + column
    return location_idx[keep], gt_idx[keep]


def _center_regions(boxes: Tensor, strides: Tensor, radius: float | None) -> Tensor:
    """(M, L, 4) boxes that a location must be strictly inside of."""
    if radius is None:
        return boxes[:, None].expand(-1, len(strides), -1)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2  # (M, 2)
    reach = (strides * radius)[None, :, None]  # (1, L, 1)
    low = torch.maximum(centers[:, None] - reach, boxes[:, None, :2])
    high = torch.minimum(centers[:, None] + reach, boxes[:, None, 2:])
    return torch.cat((low, high), dim=2)


@dataclass(frozen=True)
class Positives:
    """The positive locations of a batch, ordered by image, then location. P of them.

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
    gt_boxes_per_image: Sequence[Tensor],
    level_shapes: Sequence[tuple[int, int]],
    locations_per_level: Sequence[Tensor],
    rule: AssignmentRule,
) -> Positives:
    """Assign a batch and compute the box targets of its positive locations.

    Args:
        gt_boxes_per_image: N tensors (M, 4), ``xyxy`` in input pixels.
        level_shapes: (height, width) of each level.
        locations_per_level: from :func:`~meinst_d2.fcos.locations.level_locations`, on the boxes' device.
        rule: what makes a location positive.
    """
    matched_gt_idx = torch.stack(
        [assign_locations(boxes, level_shapes, rule) for boxes in gt_boxes_per_image]
    )  # (N, R)
    image_idx, location_idx = (matched_gt_idx != BACKGROUND).nonzero(as_tuple=True)
    num_gt = torch.tensor([len(boxes) for boxes in gt_boxes_per_image], device=image_idx.device)
    gt_idx = matched_gt_idx[image_idx, location_idx] + (num_gt.cumsum(0) - num_gt)[image_idx]
    strides = torch.cat(
        [loc.new_full((len(loc),), stride) for loc, stride in zip(locations_per_level, rule.strides, strict=True)]
    )  # (R,)
    locations = torch.cat(list(locations_per_level))[location_idx]  # (P, 2)
    boxes = torch.cat(list(gt_boxes_per_image)).float()[gt_idx]  # (P, 4)
    ltrb = xyxy_to_ltrb(locations, boxes) / strides[location_idx, None]
    return Positives(image_idx, location_idx, gt_idx, ltrb, centerness(ltrb))


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
