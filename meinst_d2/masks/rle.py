"""COCO's run-length encodings: checked, decoded, cropped and written, without a mask of the whole image.

The runs that are written are those that ``pycocotools.mask.encode`` would find in the whole mask. pycocotools writes
them down, so the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from meinst_d2.masks.rasterize import HALF, RLE, FloatArray, sampling_weights, to_rles
from meinst_d2.masks.runs import BoolArray, IntArray, alternating_lengths, find_runs, usable_boxes, windows_of

MOST_PIXELS = 2**28
"""Of an image, 16384 x 16384: more than Pillow opens."""
LONGEST_RUN = 7
"""Characters of a run: 35 bits, more than the pixels of any image."""


def decode_rle(rle: Mapping[str, Any], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bit mask of a compressed or uncompressed COCO RLE.

    Returns:
        (height, width) of zeros and ones.

    Raises:
        ValueError: the RLE is malformed, or not of this size.
    """
    runs = runs_of(rle, height, width)
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return values.repeat(runs).reshape(width, height).T


def crop_rle(
    rle: Mapping[str, Any], height: int, width: int, box: Sequence[float] | FloatArray, mask_size: int
) -> BoolArray:
    """What :func:`~meinst_d2.masks.rasterize.crop_bitmask` makes of the decoded mask, without decoding it.

    Runs go down the columns. What a run adds to a row of the template is a difference of two entries of the summed
    weights of that row, so the cost follows the number of runs, not of pixels.

    Args:
        rle: compressed or not.
        height, width: of the image.
        box: ``xyxy`` in pixels.
        mask_size: S.

    Returns:
        (S, S).

    Raises:
        ValueError: the RLE is malformed, or not of this size.
    """
    runs = runs_of(rle, height, width)
    x0, y0, x1, y1 = (float(v) for v in box)
    rows, row_slice = sampling_weights(y0, y1, height, mask_size)
    columns, column_slice = sampling_weights(x0, x1, width, mask_size)
    column, top, bottom = _pieces(runs, height, column_slice)
    top, bottom = (at.clip(row_slice.start, row_slice.stop) - row_slice.start for at in (top, bottom))
    summed = np.zeros((rows.shape[1] + 1, mask_size))  # of the weights of the pixels above
    np.cumsum(rows.T, axis=0, out=summed[1:])
    coverage = (summed[bottom] - summed[top]).T @ columns.T[column - column_slice.start]
    return coverage >= HALF


def _pieces(
    runs: npt.NDArray[np.int64], height: int, columns: slice
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Column, first row and one-past-last row of the runs of ones in these columns, cut where a column ends."""
    edges = runs.cumsum()
    starts, ends = edges[0::2][: len(runs) // 2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    first = np.maximum(starts // height, columns.start)
    last = np.minimum((ends - 1) // height, columns.stop - 1)
    counts = np.maximum(last - first + 1, 0)
    nth = np.arange(counts.sum()) - (counts.cumsum() - counts).repeat(counts)
    column = first.repeat(counts) + nth
    top = np.maximum(starts.repeat(counts) - column * height, 0)
    bottom = np.minimum(ends.repeat(counts) - column * height, height)
    return column, top, bottom


def runs_of(rle: Mapping[str, Any], height: int, width: int) -> npt.NDArray[np.int64]:
    """The checked lengths of the runs of zeros and ones in turn, down the columns.

    Raises:
        ValueError: the RLE is malformed, not of this size, or of an absurd one.
    """
    size = rle.get("size")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"an RLE of size {size} in an image of {height} x {width}")
    if not 0 <= height * width <= MOST_PIXELS or height < 0:
        raise ValueError(f"an RLE of {height} x {width} pixels, {MOST_PIXELS:,} are the most")
    counts = rle.get("counts")
    runs = _runs_of_list(counts) if isinstance(counts, (list, tuple)) else _runs_of_string(counts)
    # The largest first: the sum of absurd runs may wrap around.
    integers = runs.ndim == 1 and (runs.dtype.kind in "iu" or len(runs) == 0)
    if not integers or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError(f"an RLE whose runs do not add up to {height} x {width} pixels")
    return runs.astype(np.int64)


def _runs_of_list(counts: Sequence[Any]) -> npt.NDArray[Any]:
    try:
        return np.array(counts)
    except (ValueError, TypeError, OverflowError) as error:  # lists of several lengths, for one
        raise ValueError("an RLE with counts that are no list of whole numbers") from error


def _runs_of_string(counts: Any) -> npt.NDArray[np.int64]:
    """The run lengths of COCO's compressed counts: 5 bits a character, each run but the first three a difference."""
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if not isinstance(counts, bytes):
        raise ValueError(f"an RLE with counts of type {type(counts).__name__}")
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    lasts = (codes & 32 == 0).nonzero()[0]
    if len(codes) and (not len(lasts) or lasts[-1] != len(codes) - 1):
        raise ValueError("an RLE with counts that end within a run")
    lengths = np.diff(lasts, prepend=-1)
    if ((codes < 0) | (codes > 63)).any() or (lengths > LONGEST_RUN).any():
        raise ValueError("an RLE with counts that are no compressed runs")
    if not len(codes):
        return codes
    firsts = lasts - lengths + 1
    shifts = 5 * (np.arange(len(codes)) - firsts.repeat(lengths))
    runs = np.add.reduceat((codes & 31) << shifts, firsts)
    runs -= (codes[lasts] & 16 != 0).astype(np.int64) << (5 * lengths)
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def encode_templates(templates: Tensor, boxes: Tensor, height: int, width: int) -> list[RLE]:
    """Encode what :func:`~meinst_d2.masks.paste.paste_masks` would paint, without painting it.

    Args:
        templates: (N, S, S) probabilities, floating point, on the CPU.
        boxes: (N, 4) ``xyxy`` in pixels of the image.
        height, width: of the image.

    Returns:
        N encodings.
    """
    usable = usable_boxes(boxes.detach().float().numpy())
    columns_first = templates.detach().float().numpy().transpose(0, 2, 1)
    windows = windows_of(usable, height, width).transposed()
    rles: list[RLE] = []
    for runs in find_runs(columns_first, usable[:, [1, 0, 3, 2]], windows):
        column = runs.line * height
        rles += _encode(runs.mask, column + runs.start, column + runs.stop, len(runs.masks), height, width)
    return rles


def encode_masks(masks: BoolArray, boxes: npt.NDArray[np.floating]) -> list[RLE]:
    """Encode bit masks, looking for runs inside their boxes only.

    Args:
        masks: (N, H, W) bool.
        boxes: (N, 4) ``xyxy``. A mask that has pixels outside its box, rounded outwards, is encoded whole.

    Returns:
        N encodings.
    """
    _, height, width = masks.shape
    if len(masks) == 0:
        return []
    windows = windows_of(usable_boxes(boxes), height, width)
    changes = []
    for mask, top, left, rows, columns in zip(masks, *windows.as_lists(), strict=True):
        window = mask[top : top + rows, left : left + columns]
        if np.count_nonzero(window) == np.count_nonzero(mask):
            changes.append(_changes(window, top, left, height))
        else:
            changes.append(_changes(mask, 0, 0, height))
    owner = np.repeat(np.arange(len(masks)), [len(of_mask) // 2 for of_mask in changes])
    joined = np.concatenate(changes)
    return _encode(owner, joined[0::2], joined[1::2], len(masks), height, width)


def _changes(window: BoolArray, top: int, left: int, height: int) -> IntArray:
    """Start, stop, start, ... of the runs of every column, as positions in the whole image, column by column."""
    rows, columns = window.shape
    # A pixel that is not set comes before the first column and after each, so that runs end with their column.
    padded = np.zeros(1 + columns * (rows + 1), np.bool_)
    padded[1:].reshape(columns, rows + 1)[:, :rows] = window.T
    at = (padded[1:] != padded[:-1]).nonzero()[0]
    positions: IntArray = at + at // (rows + 1) * (height - rows - 1) + (left * height + top)
    return positions


def _encode(mask: IntArray, start: IntArray, stop: IntArray, count: int, height: int, width: int) -> list[RLE]:
    """Encodings of ``count`` masks from their runs.

    Args:
        mask: (R,) which one, rising.
        start, stop: (R,) positions in the image, column by column; within a mask rising, touching runs allowed.
        count: of the masks.
        height, width: of the image.
    """
    apart = (mask[1:] != mask[:-1]) | (start[1:] != stop[:-1])
    first, last = np.append(len(mask) > 0, apart), np.append(apart, len(mask) > 0)
    mask, start, stop = mask[first[: len(mask)]], start[first[: len(mask)]], stop[last[: len(mask)]]
    lengths, begins, ends = alternating_lengths(mask, start, stop, np.full(count, height * width))
    counts = lengths.astype(np.uint32)
    # A last run of no pixels is not written, unless it is the only one.
    runs = [
        {"size": [height, width], "counts": counts[i : j - (j - i > 1 and lengths[j - 1] == 0)]}
        for i, j in zip(begins, ends, strict=True)
    ]
    return to_rles(runs, height, width)


class RLEs(list[RLE]):
    """Encodings of several masks, indexed as Detectron2's Instances index their fields."""

    def __getitem__(self, item):  # type: ignore[no-untyped-def]
        """One encoding for an int; a list for a slice, a bool mask or an index (tensor or array)."""
        if isinstance(item, int):
            return super().__getitem__(item)
        if isinstance(item, slice):
            return RLEs(super().__getitem__(item))
        index: Sequence[int] = np.arange(len(self))[np.asarray(item)].tolist()
        return RLEs(super(RLEs, self).__getitem__(i) for i in index)
