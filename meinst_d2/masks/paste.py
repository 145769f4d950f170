"""Templates stretched over their boxes, as bit masks of the whole image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meinst_d2.masks.canvas import Canvas
from meinst_d2.masks.runs import (
    BoolArray,
    Runs,
    Windows,
    alternating_lengths,
    find_runs,
    usable_boxes,
    windows_of,
)


def paste_masks(templates: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """What Detectron2's ``paste_masks_in_image`` computes at a threshold of one half, on the CPU.

    Args:
        templates: (N, S, S) probabilities, floating point. NaN counts as 0.
        boxes: (N, 4) ``xyxy`` in pixels of the image, which they may leave. Nothing is set where a box has no area or
            is not finite.
        height, width: of the image.

    Returns:
        (N, height, width) bool.
    """
    canvas = Canvas(len(templates), height, width)
    usable = usable_boxes(boxes.detach().float().numpy())
    windows = windows_of(usable, height, width)
    for runs in find_runs(templates.detach().float().numpy(), usable, windows):
        part = windows.of(runs.masks)
        for mask, y, x, h, w, pixels in zip(runs.masks, *part.as_lists(), _pixels_of(runs, part), strict=True):
            canvas.make_ready(mask, y, h)
            canvas.masks[mask, y : y + h, x : x + w] = pixels.reshape(h, w)
    return torch.from_numpy(canvas.masks)


def _pixels_of(runs: Runs, windows: Windows) -> Iterator[BoolArray]:
    """The pixels of each window, row by row."""
    origin = windows.top * windows.width + windows.left
    line = runs.line * windows.width.take(runs.mask) - origin.take(runs.mask)
    areas = windows.height * windows.width
    lengths, _, ends = alternating_lengths(runs.mask, line + runs.start, line + runs.stop, areas)
    # A mask has an odd number of lengths; what stands between two masks becomes a set run of no pixels.
    lengths[ends[:-1]] = 0
    states = np.zeros(len(lengths), np.bool_)
    states[1::2] = True
    pixels = np.repeat(states, lengths)
    stops = np.cumsum(areas).tolist()
    return (pixels[stop - area : stop] for stop, area in zip(stops, areas.tolist(), strict=True))


ALMOST_HALF = 0.5 - 1e-6
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
    mask: BoolArray = rows @ probabilities @ columns.T >= ALMOST_HALF
    return mask


@lru_cache(maxsize=4096)
def interpolation(length: int, mask_size: int) -> npt.NDArray[np.float32]:
    """(length, S) linear interpolation from S cells to ``length`` cells of the same box; zero around the box."""
    at = (np.arange(length)[:, None] + 0.5) * (mask_size / length) - 0.5
    weights: npt.NDArray[np.float32] = np.maximum(0, 1 - np.abs(at - np.arange(mask_size))).astype(np.float32)
    return weights
