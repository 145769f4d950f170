"""COCO run-length encodings without a mask of the whole image.

The runs are those that ``pycocotools.mask.encode`` would find in the whole mask, and pycocotools writes them down, so
the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
from torch import Tensor

from meinst_d2.masks.runs import BoolArray, IntArray, alternating_lengths, find_runs, usable_boxes, windows_of


class RLE(TypedDict):
    """COCO's compressed encoding: ``size`` is [height, width]."""

    size: list[int]
    counts: bytes


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
    rles: list[RLE] = mask_util.frPyObjects(runs, height, width)
    return rles


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
