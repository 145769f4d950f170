"""The segmentation of one annotation: polygons, a run-length encoding (RLE) or a bit mask, and why it cannot be used.

RLEs are checked, decoded and cropped here. COCO's runs of zeros and ones in turn go down the columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util

from meinst_d2.masks.rasterize import HALF, RLE, BoolArray, FloatArray, IntArray, sampling_weights, to_rles

CROWD = "crowd region"
NO_MASK = "no segmentation"
FEW_POINTS = "polygon with fewer than 3 points"
NO_BOX = "box without area"
NO_IMAGE = "image that is not in the file"
HUGE_BOX = "box larger than any image"
OUTSIDE = "box outside its image"
BAD_RLE = "RLE that does not fit its image"
MALFORMED = "segmentation of an unknown kind"
FAR_POLYGON = "polygon that is absurdly long or far away"
EMPTY = "mask without a pixel in its box"
REASONS = (CROWD, NO_MASK, FEW_POINTS, NO_BOX, BAD_RLE, MALFORMED, EMPTY, NO_IMAGE, HUGE_BOX, OUTSIDE)

LONGEST_SIDE = 2.0**20
"""Pixels of a box: what cropping an RLE costs grows with it."""
MOST_PIXELS = 2**28
"""Of an image, 16384 x 16384: more than Pillow opens."""
LONGEST_RUN = 7
"""Characters of a run: 35 bits, more than the pixels of any image."""


class UnusableInstance(ValueError):
    """An annotation without a usable mask; ``reason`` is one of this module's names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def usable_polygons(segmentation: Sequence[Any]) -> list[npt.NDArray[np.float64]]:
    """The parts of a polygon segmentation that have at least 3 points, as flat arrays.

    Raises:
        UnusableInstance: there is none, or the coordinates are not numbers.
    """
    if not segmentation:
        raise UnusableInstance(NO_MASK)
    try:
        parts = [np.asarray(part, np.float64) for part in segmentation]
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableInstance(MALFORMED) from error
    # The sum of squares is finite where all coordinates are, and costs a third of looking at each.
    if any(part.ndim != 1 or not math.isfinite(part.dot(part)) for part in parts):
        raise UnusableInstance(MALFORMED)
    if len(parts) > 2 and all(len(part) == 2 for part in parts):  # points in pairs
        raise UnusableInstance(MALFORMED)
    parts = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
    if not parts:
        raise UnusableInstance(FEW_POINTS)
    return parts


def bitmask_of(segmentation: Any, image_size: tuple[int, int]) -> npt.NDArray[Any]:
    """The (H, W) bit mask of an RLE or of a bit mask.

    Raises:
        UnusableInstance: it is neither, or does not fit the image.
    """
    if segmentation is None:
        raise UnusableInstance(NO_MASK)
    if isinstance(segmentation, np.ndarray):
        if segmentation.shape != tuple(image_size):
            raise UnusableInstance(BAD_RLE)
        return segmentation.astype(np.bool_)
    if not isinstance(segmentation, Mapping):
        raise UnusableInstance(MALFORMED)
    try:
        return decode_rle(segmentation, *image_size)
    except (ValueError, TypeError) as error:
        raise UnusableInstance(BAD_RLE) from error


def rle_of(segmentation: Any, image_size: tuple[int, int]) -> RLE:
    """The mask of an annotation in the whole image, as COCO's tools draw it.

    Args:
        segmentation: polygons, an RLE or a bit mask.
        image_size: (height, width).

    Raises:
        UnusableInstance: it is none of these, does not fit the image, or has an absurdly long outline.
    """
    if isinstance(segmentation, list):
        parts = usable_polygons(segmentation)
        try:
            merged: RLE = mask_util.merge(to_rles(parts, *image_size))
        except ValueError as error:
            raise UnusableInstance(FAR_POLYGON) from error
        return merged
    if isinstance(segmentation, Mapping):
        try:
            runs = runs_of(segmentation, *image_size)
        except (ValueError, TypeError) as error:
            raise UnusableInstance(BAD_RLE) from error
        if runs[1:].all():  # else drawing the mask joins what runs of no pixels keep apart
            return to_rles([{"size": list(image_size), "counts": runs}], *image_size)[0]
    encoded: RLE = mask_util.encode(np.asfortranarray(bitmask_of(segmentation, image_size), np.uint8))
    return encoded


def areas(rles: Sequence[RLE]) -> IntArray:
    """(N,) pixels that are set in each mask."""
    return np.array(mask_util.area(list(rles)), np.int64)


def tight_boxes(rles: Sequence[RLE]) -> npt.NDArray[np.float64]:
    """(N, 4) ``xywh`` of the pixels that are set in each mask; zeros of none."""
    return np.array(mask_util.toBbox(list(rles)), np.float64).reshape(-1, 4)


def ious(first: Sequence[RLE], second: Sequence[RLE], *, crowd: bool = False) -> npt.NDArray[np.float64]:
    """(N, M) intersection over union of every pair; with ``crowd`` the intersection over the area of the first."""
    shape = len(first), len(second)
    return np.reshape(mask_util.iou(list(first), list(second), [crowd] * shape[1]), shape).astype(np.float64)


def tight_window(mask: npt.NDArray[Any]) -> tuple[slice, slice]:
    """The rows and the columns of the smallest box around an (H, W) bit mask; both empty where no pixel is set."""
    lines = (mask.any(axis=axis).nonzero()[0] for axis in (1, 0))
    rows, columns = (slice(at[0], at[-1] + 1) if len(at) else slice(0, 0) for at in lines)
    return rows, columns


def runs_of(rle: Mapping[str, Any], height: int, width: int) -> IntArray:
    """The checked lengths of the runs of an RLE, compressed or not.

    Raises:
        ValueError: the RLE is malformed, not of this size, or of an absurd one.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise ValueError(f"an RLE of size {size} in an image of {height} x {width}")
    if not 0 <= height * width <= MOST_PIXELS or height < 0:
        raise ValueError(f"an RLE of {height} x {width} pixels, {MOST_PIXELS:,} are the most")
    if isinstance(counts, (list, tuple)):
        try:
            runs = np.array(counts)
        except (ValueError, TypeError, OverflowError) as error:  # lists of several lengths, for one
            raise ValueError("an RLE with counts that are not a list of whole numbers") from error
    else:
        runs = _decompressed(counts)
    # The largest first: the sum of absurd runs may wrap around.
    integers = runs.ndim == 1 and (runs.dtype.kind in "iu" or len(runs) == 0)
    if not integers or (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError(f"an RLE whose runs do not add up to {height} x {width} pixels")
    return runs.astype(np.int64)


def _decompressed(counts: Any) -> IntArray:
    """The run lengths of COCO's compressed counts: 5 bits a character, each run but the first three a difference."""
    if isinstance(counts, str):
        counts = counts.encode("ascii", "replace")
    if not isinstance(counts, bytes):
        raise ValueError(f"an RLE with counts of type {type(counts).__name__}")
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    lasts = (codes & 32 == 0).nonzero()[0]  # bit 5 says that the run continues
    if len(codes) and (not len(lasts) or lasts[-1] != len(codes) - 1):
        raise ValueError("an RLE with counts that end within a run")
    lengths = np.diff(lasts, prepend=-1)
    if ((codes < 0) | (codes > 63)).any() or (lengths > LONGEST_RUN).any():
        raise ValueError("an RLE with counts that are not compressed runs")
    if not len(codes):
        return codes
    firsts = lasts - lengths + 1
    shifts = 5 * (np.arange(len(codes)) - firsts.repeat(lengths))
    runs: IntArray = np.add.reduceat((codes & 31) << shifts, firsts)
    runs -= (codes[lasts] & 16 != 0).astype(np.int64) << (5 * lengths)  # bit 4 of the last character is the sign
    # Every run is the difference to the one before the previous.
    runs[1::2] = runs[1::2].cumsum()
    runs[2::2] = runs[2::2].cumsum()
    return runs


def set_runs(runs: IntArray) -> tuple[IntArray, IntArray]:
    """First pixel, and the one after the last, of the runs of ones among checked runs; those of no pixels left out."""
    edges = runs.cumsum()
    starts, ends = edges[0::2][: len(runs) // 2], edges[1::2]
    return starts[ends > starts], ends[ends > starts]


def decode_rle(rle: Mapping[str, Any], height: int, width: int) -> npt.NDArray[np.uint8]:
    """(height, width) bit mask, zeros and ones, of a compressed or uncompressed COCO RLE.

    Raises:
        ValueError: the RLE is malformed, or not of this size.
    """
    runs = runs_of(rle, height, width)
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    mask: npt.NDArray[np.uint8] = values.repeat(runs).reshape(width, height).T
    return mask


def crop_rle(
    rle: Mapping[str, Any], height: int, width: int, box: Sequence[float] | FloatArray, mask_size: int
) -> BoolArray:
    """(S, S), what :func:`~meinst_d2.masks.rasterize.crop_bitmask` makes of the decoded mask, without decoding it.

    What a run adds to a row of the template is a difference of two entries of the summed weights of that row, so the
    cost follows the number of runs, not of pixels.

    Raises:
        ValueError: the RLE is malformed, or not of this size.
    """
    runs = runs_of(rle, height, width)
    x0, y0, x1, y1 = (float(v) for v in box)
    rows, row_slice = sampling_weights(y0, y1, height, mask_size)
    columns, column_slice = sampling_weights(x0, x1, width, mask_size)
    # Runs of ones, in these columns and cut where a column ends: the nth piece of a run lies in its nth column.
    starts, ends = set_runs(runs)
    first = np.maximum(starts // height, column_slice.start)
    last = np.minimum((ends - 1) // height, column_slice.stop - 1)
    counts = np.maximum(last - first + 1, 0)
    nth = np.arange(counts.sum()) - (counts.cumsum() - counts).repeat(counts)
    column = first.repeat(counts) + nth
    # Clipped to the slice, they are also cut where their column ends.
    tops, bottoms = (at.repeat(counts) - column * height for at in (starts, ends))
    top, bottom = (at.clip(row_slice.start, row_slice.stop) - row_slice.start for at in (tops, bottoms))
    summed = np.zeros((rows.shape[1] + 1, mask_size))  # of the weights of the pixels above
    np.cumsum(rows.T, axis=0, out=summed[1:])
    coverage: npt.NDArray[np.float64] = (summed[bottom] - summed[top]).T @ columns.T[column - column_slice.start]
    return coverage >= HALF


class RLEs(list[RLE]):
    """Encodings of several masks, indexed as Detectron2's Instances index their fields."""

    def __getitem__(self, item):  # type: ignore[no-untyped-def]
        """One encoding for an int; a list for a slice, a bool mask or an index (tensor or array)."""
        if isinstance(item, int):
            return super().__getitem__(item)
        if isinstance(item, slice):
            return RLEs(super().__getitem__(item))
        return RLEs(self[i] for i in np.arange(len(self))[np.asarray(item)].tolist())
