"""Where stretched templates are set: runs of pixels, found without looking at every pixel.

A template stretched over a box is interpolated bilinearly between its S x S samples and 0 outside (what
``grid_sample`` computes with ``align_corners=False`` and zero padding); a pixel is set where that is at least one half.
Along a line of pixels the interpolation is linear between two neighbouring samples, so the mask can change only once
between them, at a point that a division gives. A mask thus costs S numbers per line instead of one per pixel.

Symbols: N masks, S mask side, L lines of all masks together, T toggles (where a line changes between unset and set),
R runs. Lines are rows here; columns where everything comes transposed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meinst_d2.masks.rasterize import HALF, FloatArray, IntArray

Boxes = npt.NDArray[np.float32]

LINES_AT_ONCE = 4096
"""Keeps the working memory to about 2 MB, which a core's cache holds."""


class Windows(NamedTuple):
    """The part of the image that each box touches, and one pixel more on every side: (N,) int64 each."""

    top: IntArray
    left: IntArray
    height: IntArray
    width: IntArray

    def of(self, masks: range) -> Windows:
        """The windows of consecutive masks."""
        return Windows(*(side[masks.start : masks.stop] for side in self))


class Runs(NamedTuple):
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
        mask: (R,) rising, below N.
        start, stop: (R,) positions in their mask, rising within a mask.
        totals: (N,) pixels of each mask.

    Returns:
        The lengths of all masks; and (N,) where each mask's begin and end in them. Their number is odd; a length may
        be 0.
    """
    count = len(totals)
    owner = np.repeat(mask, 2)  # (2R,)
    # For every mask a 0, its changes and its total: the lengths are the differences of neighbours.
    changes = np.zeros(len(owner) + 2 * count, np.int64)
    changes[np.arange(len(owner)) + 2 * owner + 1] = np.stack((start, stop), 1).reshape(-1)
    ends = np.searchsorted(owner, np.arange(count), side="right") + 2 * np.arange(1, count + 1)  # (N,)
    changes[ends - 1] = totals
    return np.diff(changes), [0, *ends[:-1].tolist()], (ends - 1).tolist()


def usable_boxes(boxes: FloatArray) -> Boxes:
    """(N, 4) the boxes, with (0, 0, 0, 0) in place of those that are not finite or have no area."""
    boxes = boxes.astype(np.float32)  # a copy
    with np.errstate(invalid="ignore", over="ignore"):
        sides = boxes[:, 2:] - boxes[:, :2]
    boxes[~(np.isfinite(sides) & (sides > 0)).all(1)] = 0
    return boxes


def windows_of(boxes: Boxes, height: int, width: int) -> Windows:
    """The windows of usable (N, 4) boxes in an image of this size."""
    limit = np.array([width, height], np.float32)
    first = np.clip(np.floor(boxes[:, :2]) - 1, 0, limit).astype(np.int64)  # (N, 2) column, row
    last = np.clip(np.ceil(boxes[:, 2:]) + 1, 0, limit).astype(np.int64)
    sides = np.where(boxes[:, 2:] > boxes[:, :2], last - first, 0)
    return Windows(first[:, 1], first[:, 0], sides[:, 1], sides[:, 0])


def find_runs(templates: FloatArray, boxes: Boxes, windows: Windows) -> Iterator[Runs]:
    """Runs along the lines of an image.

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
        yield Runs(masks, *_runs(padded[begin:end], boxes[begin:end], windows.of(masks)))
        begin = end


def _runs(templates: FloatArray, boxes: Boxes, windows: Windows) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Mask, line, start and stop of the (R,) runs of (N, S + 2, S + 2) templates, padded with zeros."""
    side, count = templates.shape[1], windows.height
    mask = np.repeat(np.arange(len(templates)), count)  # (L,) of each line
    line = np.arange(len(mask)) + np.repeat(windows.top - (np.cumsum(count) - count), count)  # (L,) in the image

    # Every line lies between two rows of its template: row + weight * (next row - row).
    row, row_weight = _sample(line, boxes[:, 1].take(mask), boxes[:, 3].take(mask), side - 2)  # (L,)
    at = mask * side + row
    values = templates.reshape(-1, side).take(at, 0)  # (L, S + 2)
    step = np.diff(templates, axis=1, append=np.float32(0)).reshape(-1, side).take(at, 0)
    step *= row_weight[:, None]
    values += step

    # It toggles where neighbouring samples lie on two sides of one half. Padding is not set: an even number per line.
    flat = values.reshape(-1)
    is_set = flat >= np.float32(0.5)
    toggles = (is_set[1:] != is_set[:-1]).nonzero()[0]  # (T,)
    where = toggles // side  # (T,) the line of each
    mask = mask.take(where)  # (T,)
    low, high = boxes[:, 0].astype(np.float64), boxes[:, 2].astype(np.float64)  # (N,)
    scale = (high - low) / (side - 2)  # pixels per template pixel
    origin = low - 0.5 - 0.5 * scale  # the pixel at the first sample, which is padding
    scales = scale.take(mask)
    # From ``before`` to ``after``, one half is reached at the share (1/2 - before) / (after - before) of the way.
    before, after = flat.take(toggles).astype(np.float64), flat.take(toggles + 1).astype(np.float64)
    inverse_slope = scales / (after - before)  # pixels per unit
    crossing = (HALF - before) * inverse_slope + (toggles - where * side) * scales + origin.take(mask)
    pixel = np.ceil(crossing)  # (T,) the first one in the new state

    # Next to a pixel's centre, rounding decides: ask that pixel, in float64, the same along rows and along columns.
    nearest = np.rint(crossing)
    doubt = 4e-7 * np.abs(inverse_slope) + (1e-4 + 1e-6 * (high - low)).take(mask)
    close = (np.abs(crossing - nearest) < doubt).nonzero()[0]
    of, asked, at = mask[close], nearest[close], where[close]
    column, column_weight = _sample(asked, boxes[of, 0], boxes[of, 2], side - 2)
    x, y, i = column_weight.astype(np.float64), row_weight[at].astype(np.float64), row[at]
    above, below = ((1 - x) * templates[of, j, column] + x * templates[of, j, column + 1] for j in (i, i + 1))
    now_set = (1 - y) * above + y * below >= HALF
    pixel[close] = np.where(now_set != is_set[toggles[close]], asked, asked + 1)

    left, right = windows.left.take(mask), (windows.left + windows.width).take(mask)
    inside = np.clip(pixel, left, right).astype(np.int64)
    start, stop, where, mask = inside[0::2], inside[1::2], where[0::2], mask[0::2]  # (T / 2,)
    # Two toggles at one pixel may have been rounded past each other.
    start[1:] = np.where(where[1:] == where[:-1], np.maximum(start[1:], stop[:-1]), start[1:])
    keep = stop > start
    return mask[keep], line.take(where[keep]), start[keep], stop[keep]


def _sample(pixel: npt.NDArray[Any], low: Boxes, high: Boxes, size: int) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Between which two entries of a padded template axis the centre of a pixel lies, and the weight of the second.

    In float32 and in ``grid_sample``'s order, so that one half is passed at the same pixels.
    """
    one = np.float32(1)
    with np.errstate(over="ignore"):
        normalised = (pixel.astype(np.float32) + np.float32(0.5) - low) / (high - low) * np.float32(2) - one
        index = ((normalised + one) * np.float32(size) - one) / np.float32(2)
    index = np.clip(index, np.float32(-2), np.float32(size + 1))
    lower = np.floor(index)
    cell = lower.astype(np.int64) + 1
    outside = (cell < 0) | (cell > size)
    return np.where(outside, 0, cell), np.where(outside, np.float32(0), index - lower)  # 0 is padding
