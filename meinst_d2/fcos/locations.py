"""Where the dense predictions sit in the image."""

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
