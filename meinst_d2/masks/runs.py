"""Where stretched templates are set: runs of pixels, found without looking at every pixel.

A template stretched over a box is interpolated bilinearly between its S x S samples and 0 outside (what
``grid_sample`` computes with ``align_corners=False`` and zero padding); a pixel is set where that is at least one half.
Along a line of pixels the interpolation is linear between two neighbouring samples, so the mask can change only once
between them, at a point that a division gives. A mask thus costs S numbers per line instead of one per pixel.

Symbols: N masks, S mask side, L lines of all masks together, T toggles: where a line changes between unset and set.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

THRESHOLD = 0.5 - 1e-9
"""Exactly one half counts, whatever the rounding."""

LINES_AT_ONCE = 2048
"""Keeps the working memory to about 2 MB, which a core's cache holds."""


@dataclass(frozen=True)
class Windows:
    """The part of the image that each box touches, and one pixel more on every side: (N,) int64 each."""

    top: IntArray
    left: IntArray
    height: IntArray
    width: IntArray

    def transposed(self) -> Windows:
        """The same with rows and columns swapped."""
        return Windows(self.left, self.top, self.width, self.height)

    def as_lists(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Tops, lefts, heights and widths."""
        return self.top.tolist(), self.left.tolist(), self.height.tolist(), self.width.tolist()

    def of(self, masks: range) -> Windows:
        """Those of some masks."""
        part = slice(masks.start, masks.stop)
        return Windows(self.top[part], self.left[part], self.height[part], self.width[part])


@dataclass(frozen=True)
class Runs:
    """Set pixels of a few consecutive masks, sorted by mask, line and start.

    Attributes:
        masks: which ones.
        mask: (R,) int64, within ``masks``.
        line: (R,) int64, the line of the image.
        start, stop: (R,) int64, first pixel and the one after the last, ``start < stop``. Runs of a line may touch.
    """

    masks: range
    mask: IntArray
    line: IntArray
    start: IntArray
    stop: IntArray


def usable_boxes(boxes: FloatArray) -> npt.NDArray[np.float32]:
    """(N, 4) the boxes, with (0, 0, 0, 0) in place of those that are not finite or have no area."""
    boxes = boxes.astype(np.float32)  # a copy
    with np.errstate(invalid="ignore", over="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
    boxes[~(np.isfinite(sides) & (sides > 0)).all(1)] = 0
    return boxes


def windows_of(boxes: npt.NDArray[np.float32], height: int, width: int) -> Windows:
    """Windows of usable boxes."""
    top, rows = _window(boxes[:, 1], boxes[:, 3], height)
    left, columns = _window(boxes[:, 0], boxes[:, 2], width)
    return Windows(top, left, rows, columns)


def _window(low: FloatArray, high: FloatArray, length: int) -> tuple[IntArray, IntArray]:
    first = np.clip(np.floor(low) - 1, 0, length).astype(np.int64)
    last = np.clip(np.ceil(high) + 1, 0, length).astype(np.int64)
    return first, np.where(high > low, last - first, 0)


def find_runs(templates: FloatArray, boxes: npt.NDArray[np.float32], windows: Windows) -> Iterator[Runs]:
    """Runs along the rows of an image; along its columns where everything comes transposed.

    Args:
        templates: (N, S, S) probabilities. NaN counts as 0.
        boxes: (N, 4) ``xyxy`` in pixels of the image, usable, see :func:`usable_boxes`.
        windows: see :func:`windows_of`.

    Yields:
        The runs of the next few masks, until all had their turn.
    """
    n, size = templates.shape[:2]
    padded = np.zeros((n, size + 2, size + 2))
    padded[:, 1:-1, 1:-1] = np.nan_to_num(templates, nan=0.0, posinf=1.0, neginf=0.0)
    ends = np.cumsum(windows.height)
    begin = 0
    while begin < n:
        limit = LINES_AT_ONCE + (ends[begin - 1] if begin else 0)
        end = max(begin + 1, int(np.searchsorted(ends, limit, side="right")))
        masks = range(begin, end)
        yield _runs_of(masks, padded[begin:end], boxes[begin:end], windows.of(masks))
        begin = end


def _runs_of(masks: range, padded: npt.NDArray[np.float64], boxes: npt.NDArray[np.float32], windows: Windows) -> Runs:
    side = padded.shape[1]  # S + 2
    count = windows.height
    mask = np.repeat(np.arange(len(masks)), count)  # (L,)
    line = np.arange(len(mask)) + np.repeat(windows.top - (np.cumsum(count) - count), count)
    cell, weight = _sample(line, boxes[mask, 1], boxes[mask, 3], side - 2)
    at = mask * side + cell
    values = padded.reshape(-1, side).take(at, 0)
    step = np.diff(padded, axis=1, append=0).reshape(-1, side).take(at, 0)
    step *= weight[:, None]
    values += step  # (L, S + 2), the templates' rows interpolated at the lines
    flat = values.reshape(-1)
    is_set = flat >= THRESHOLD
    toggles = (is_set[1:] != is_set[:-1]).nonzero()[0]  # (T,); padding is not set, so every line has an even number
    where = toggles // side
    owner = mask[where]
    pixels = _toggle_pixels(flat, is_set, toggles, where, boxes.take(owner, 0), side)
    low = windows.left[owner]
    at_pixel: IntArray = np.clip(pixels, low, low + windows.width[owner]).astype(np.int64)
    start, stop, where, owner = at_pixel[0::2], at_pixel[1::2], where[0::2], owner[0::2]
    # Two toggles at one pixel may have been rounded past each other.
    start[1:] = np.where(where[1:] == where[:-1], np.maximum(start[1:], stop[:-1]), start[1:])
    keep = stop > start
    return Runs(masks, owner[keep], line[where[keep]], start[keep], stop[keep])


def _sample(
    pixel: npt.NDArray[Any], low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], size: int
) -> tuple[IntArray, npt.NDArray[np.float64]]:
    """Between which two entries of a padded template axis the centre of a pixel lies, and the weight of the second.

    In float32 and in ``grid_sample``'s order, so that thresholds are passed at the same pixels.
    """
    one = np.float32(1)
    with np.errstate(over="ignore"):
        normalised = (pixel.astype(np.float32) + np.float32(0.5) - low) / (high - low) * np.float32(2) - one
        index = ((normalised + one) * np.float32(size) - one) / np.float32(2)
    index = np.clip(index, -2, size + 1)
    lower = np.floor(index)
    weight = (index - lower).astype(np.float64)
    cell = lower.astype(np.int64) + 1
    outside = (cell < 0) | (cell > size)
    cell[outside] = 0  # padding
    weight[outside] = 0
    return cell, weight


def _toggle_pixels(
    values: npt.NDArray[np.float64],
    is_set: BoolArray,
    toggles: IntArray,
    where: IntArray,
    boxes: npt.NDArray[np.float32],
    side: int,
) -> npt.NDArray[np.float64]:
    """(T,) first pixel in the new state, of each toggle.

    Args:
        values: (L * (S + 2),) interpolated lines.
        is_set: their state.
        toggles: (T,) entries of ``values`` whose successor has another state.
        where: (T,) their lines.
        boxes: (T, 4) of their masks.
        side: S + 2.
    """
    before, after = values[toggles], values[toggles + 1]
    low, extent = boxes[:, 0].astype(np.float64), (boxes[:, 2] - boxes[:, 0]).astype(np.float64)
    position = (toggles - where * side) - 0.5 + (THRESHOLD - before) / (after - before)  # template pixels from the box
    crossing = position * (extent / (side - 2)) + (low - 0.5)
    pixel = np.ceil(crossing)
    # Next to a pixel's centre the rounding of the sampled position decides: ask that pixel.
    nearest = np.rint(crossing)
    close = (np.abs(crossing - nearest) < 1e-4 + 1e-6 * extent).nonzero()[0]
    asked, at = nearest[close], where[close] * side
    cell, weight = _sample(asked, boxes[close, 0], boxes[close, 2], side - 2)
    left, right = values[at + cell], values[at + cell + 1]
    changed = (left + (right - left) * weight >= THRESHOLD) != is_set[toggles[close]]
    pixel[close] = np.where(changed, asked, asked + 1)
    return pixel
