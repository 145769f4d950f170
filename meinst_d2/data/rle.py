"""COCO's run-length encodings: checked, decoded, and cropped without being decoded. Needs numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from meinst_d2.data.rasterize import HALF, BoolArray, FloatArray, sampling_weights

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
    """What :func:`~meinst_d2.data.rasterize.crop_bitmask` makes of the decoded mask, without decoding it.

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
