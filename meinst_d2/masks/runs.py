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

HALF = np.float32(0.5)
EXACTLY_HALF = 0.5 - 1e-9
"""Exactly one half counts, whatever the rounding in float64."""

LINES_AT_ONCE = 4096
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


def alternating_lengths(
    mask: IntArray, start: IntArray, stop: IntArray, totals: IntArray
) -> tuple[IntArray, list[int], list[int]]:
    """Lengths of the runs of masks that are laid out pixel after pixel: unset, set, unset, ..., unset.

    Args:
        mask: (R,) rising, below n.
        start, stop: (R,) positions in their mask, rising within a mask.
        totals: (n,) pixels of each mask.

    Returns:
        The lengths of all masks; and (n,) where each mask's begin and end in them. Their number is odd; a length may
        be 0.
    """
    count = len(totals)
    owner = np.repeat(mask, 2)
    changes = np.zeros(len(owner) + 2 * count, np.int64)  # per mask 0, its changes, its total
    changes[np.arange(len(owner)) + 2 * owner + 1] = np.stack((start, stop), 1).reshape(-1)
    ends = np.searchsorted(owner, np.arange(count), side="right") + 2 * np.arange(1, count + 1)
    changes[ends - 1] = totals
    return np.diff(changes), [0, *ends[:-1].tolist()], (ends - 1).tolist()


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
    padded = np.zeros((n, size + 2, size + 2), np.float32)
    padded[:, 1:-1, 1:-1] = np.nan_to_num(templates, nan=0.0, posinf=1.0, neginf=0.0)
    ends = np.cumsum(windows.height)
    begin = 0
    while begin < n:
        limit = LINES_AT_ONCE + (ends[begin - 1] if begin else 0)
        end = max(begin + 1, int(np.searchsorted(ends, limit, side="right")))
        masks = range(begin, end)
        lines = _interpolate(padded[begin:end], boxes[begin:end], windows.of(masks))
        yield _runs_of(masks, lines, boxes[begin:end], windows.of(masks))
        begin = end


@dataclass(frozen=True)
class _Lines:
    """Every line of some windows, with the templates interpolated to it.

    Attributes:
        templates: (N, S + 2, S + 2) float32, padded with zeros.
        mask: (L,) the mask of each line.
        line: (L,) its number in the image.
        cell: (L,) the first of the two template rows that it lies between.
        weight: (L,) float32, that of the second.
        values: (L, S + 2) float32.
    """

    templates: FloatArray
    mask: IntArray
    line: IntArray
    cell: IntArray
    weight: FloatArray
    values: FloatArray


def _interpolate(templates: FloatArray, boxes: npt.NDArray[np.float32], windows: Windows) -> _Lines:
    side, count = templates.shape[1], windows.height
    mask = np.repeat(np.arange(len(templates)), count)
    line = np.arange(len(mask)) + np.repeat(windows.top - (np.cumsum(count) - count), count)
    cell, weight = _sample(line, boxes[:, 1].take(mask), boxes[:, 3].take(mask), side - 2)
    at = mask * side + cell
    values = templates.reshape(-1, side).take(at, 0)
    step = np.diff(templates, axis=1, append=np.float32(0)).reshape(-1, side).take(at, 0)
    step *= weight[:, None]
    values += step
    return _Lines(templates, mask, line, cell, weight, values)


def _runs_of(masks: range, lines: _Lines, boxes: npt.NDArray[np.float32], windows: Windows) -> Runs:
    flat = lines.values.reshape(-1)
    is_set = flat >= HALF
    toggles = (is_set[1:] != is_set[:-1]).nonzero()[0]  # (T,); padding is not set, so every line has an even number
    where = toggles // lines.values.shape[1]
    mask = lines.mask.take(where)
    pixels = _toggle_pixels(lines, is_set, toggles, where, boxes)
    right = windows.left + windows.width
    pixel: IntArray = np.clip(pixels, windows.left.take(mask), right.take(mask)).astype(np.int64)
    start, stop, where, mask = pixel[0::2], pixel[1::2], where[0::2], mask[0::2]
    # Two toggles at one pixel may have been rounded past each other.
    start[1:] = np.where(where[1:] == where[:-1], np.maximum(start[1:], stop[:-1]), start[1:])
    keep = stop > start
    return Runs(masks, mask[keep], lines.line.take(where[keep]), start[keep], stop[keep])


def _toggle_pixels(
    lines: _Lines, is_set: BoolArray, toggles: IntArray, where: IntArray, boxes: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """(T,) first pixel in the new state, of each toggle.

    Args:
        lines: whose values, all in a row, toggle.
        is_set: their state.
        toggles: (T,) entries whose successor has another state.
        where: (T,) their lines.
        boxes: (N, 4) of the masks.
    """
    values, side = lines.values.reshape(-1), lines.values.shape[1]
    mask = lines.mask.take(where)
    low, high = boxes[:, 0].astype(np.float64), boxes[:, 2].astype(np.float64)
    scale = (high - low) / (side - 2)  # pixels per template pixel
    origin = low - 0.5 - 0.5 * scale  # the pixel at the first sample, which is padding
    scales = scale.take(mask)
    before, after = values.take(toggles).astype(np.float64), values.take(toggles + 1).astype(np.float64)
    inverse_slope = scales / (after - before)  # pixels per unit
    crossing = (EXACTLY_HALF - before) * inverse_slope + (toggles - where * side) * scales + origin.take(mask)
    pixel: npt.NDArray[np.float64] = np.ceil(crossing)
    # Next to a pixel's centre, rounding decides: ask that pixel.
    nearest = np.rint(crossing)
    doubt = 4e-7 * np.abs(inverse_slope) + (1e-4 + 1e-6 * (high - low)).take(mask)
    close = (np.abs(crossing - nearest) < doubt).nonzero()[0]
    asked = nearest[close]
    changed = _is_set_at(lines, where[close], asked, boxes) != is_set[toggles[close]]
    pixel[close] = np.where(changed, asked, asked + 1)
    return pixel


def _is_set_at(
    lines: _Lines, where: IntArray, pixel: npt.NDArray[np.float64], boxes: npt.NDArray[np.float32]
) -> BoolArray:
    """Whether single pixels, on the lines ``where``, are set: in float64, the same along rows and along columns."""
    mask, row = lines.mask[where], lines.cell[where]
    column, weight = _sample(pixel, boxes[mask, 0], boxes[mask, 2], lines.values.shape[1] - 2)
    x, y = weight.astype(np.float64), lines.weight[where].astype(np.float64)

    def corner(row: IntArray, column: IntArray) -> npt.NDArray[np.float64]:
        return lines.templates[mask, row, column].astype(np.float64)

    above = (1 - x) * corner(row, column) + x * corner(row, column + 1)
    below = (1 - x) * corner(row + 1, column) + x * corner(row + 1, column + 1)
    answer: BoolArray = (1 - y) * above + y * below >= EXACTLY_HALF
    return answer


def _sample(
    pixel: npt.NDArray[Any], low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], size: int
) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Between which two entries of a padded template axis the centre of a pixel lies, and the weight of the second.

    In float32 and in ``grid_sample``'s order, so that one half is passed at the same pixels.
    """
    one = np.float32(1)
    with np.errstate(over="ignore"):
        normalised = (pixel.astype(np.float32) + HALF - low) / (high - low) * np.float32(2) - one
        index = ((normalised + one) * np.float32(size) - one) / np.float32(2)
    index = np.clip(index, np.float32(-2), np.float32(size + 1))
    lower = np.floor(index)
    weight: npt.NDArray[np.float32] = index - lower
    cell = lower.astype(np.int64) + 1
    outside = (cell < 0) | (cell > size)
    cell[outside] = 0  # padding
    weight[outside] = 0
    return cell, weight
