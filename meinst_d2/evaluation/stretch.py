"""Templates stretched over boxes of any size, as pasting into an image does."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from meinst_d2.data.rasterize import BoolArray

THRESHOLD = 0.5 - 1e-6
"""One half, less than the rounding of what is exactly one half."""


def stretch(probabilities: npt.NDArray[np.floating], height: int, width: int) -> BoolArray:
    """The mask that S x S probabilities give in a box.

    Detectron2 pastes the same: bilinear between the centres of the template's pixels, falling to zero around the
    template, cut at one half.

    Args:
        probabilities: (..., S, S).
        height, width: of the box in pixels.

    Returns:
        (..., height, width).
    """
    rows, columns = (interpolation(length, probabilities.shape[-1]) for length in (height, width))
    mask: BoolArray = rows @ probabilities @ columns.T >= THRESHOLD
    return mask


@lru_cache(maxsize=4096)
def interpolation(length: int, mask_size: int) -> npt.NDArray[np.float32]:
    """(length, S) linear interpolation from S cells to ``length`` cells of the same box; zero around the box."""
    at = (np.arange(length)[:, None] + 0.5) * (mask_size / length) - 0.5
    weights: npt.NDArray[np.float32] = np.maximum(0, 1 - np.abs(at - np.arange(mask_size))).astype(np.float32)
    return weights
