"""Where dense predictions sit in the image, and boxes as corners (``xyxy``) and as distances from there (``ltrb``)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def level_locations(
    level_shapes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device | str = "cpu"
) -> list[Tensor]:
    """Image coordinates of the cells of every level.

    Cell (i, j) of a level of stride s sits at (x, y) = (j * s + s // 2, i * s + s // 2).

    Args:
        level_shapes: (height, width) of each feature map.
        strides: input pixels per cell of each feature map.
        device: where to make them.

    Returns:
        Per level a (height * width, 2) float32 tensor of (x, y) in input pixels, rows first.
    """
    locations = []
    for (height, width), stride in zip(level_shapes, strides, strict=True):
        x = torch.arange(width, device=device, dtype=torch.float32) * stride + stride // 2
        y = torch.arange(height, device=device, dtype=torch.float32) * stride + stride // 2
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        locations.append(torch.stack((grid_x.reshape(-1), grid_y.reshape(-1)), dim=1))
    return locations


def box_area(boxes: Tensor) -> Tensor:
    """Area of ``xyxy`` boxes.

    Args:
        boxes: (..., 4).

    Returns:
        (...) in the square of the boxes' unit.
    """
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def xyxy_to_ltrb(locations: Tensor, boxes: Tensor) -> Tensor:
    """Distances from locations to the left, top, right and bottom side; negative on the outside.

    Args:
        locations: (..., 2), (x, y).
        boxes: (..., 4), broadcast against ``locations``.

    Returns:
        (..., 4) in the boxes' unit.
    """
    return torch.cat((locations - boxes[..., :2], boxes[..., 2:] - locations), dim=-1)


def ltrb_to_xyxy(locations: Tensor, ltrb: Tensor) -> Tensor:
    """The inverse of :func:`xyxy_to_ltrb`.

    Args:
        locations: (..., 2), (x, y).
        ltrb: (..., 4), in the unit of ``locations``.

    Returns:
        (..., 4).
    """
    return torch.cat((locations - ltrb[..., :2], locations + ltrb[..., 2:]), dim=-1)


def enlarge(boxes: Tensor, factor: float) -> Tensor:
    """(n, 4) ``xyxy`` boxes with sides longer by a factor, about the same centres."""
    grow = (boxes[:, 2:] - boxes[:, :2]) * ((factor - 1) / 2)
    return torch.cat((boxes[:, :2] - grow, boxes[:, 2:] + grow), dim=1)
