"""Boxes as corners (``xyxy``) and as distances from a location (``ltrb``)."""

from __future__ import annotations

import torch
from torch import Tensor


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
