"""From templates and boxes to masks of the whole image, and from masks to encodings.

What is encoded has the bytes of ``pycocotools.mask.encode``, which looks at every pixel: here only runs are looked at.

Symbols: N masks of H x W pixels, S mask side, R runs.
"""

from __future__ import annotations

import contextlib
import weakref
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meinst_d2.masks.rasterize import RLE, BoolArray, IntArray, to_rles
from meinst_d2.masks.rle import decode_rle, rle_of
from meinst_d2.masks.runs import alternating_lengths, find_runs, usable_boxes, windows_of

KEEP_AT_MOST = 2**28
"""Bytes that are kept between two images: 100 masks of 1600 x 1600 pixels."""
ALMOST_HALF = 0.5 - 1e-6
"""One half, less than the rounding of what is exactly one half."""

_kept: list[BoolArray] = []
"""The memory of an earlier stack of masks, at most one."""


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
    masks = _empty_masks(len(templates), height, width)
    usable = usable_boxes(boxes.detach().float().numpy())
    windows = windows_of(usable, height, width)
    for runs in find_runs(templates.detach().float().numpy(), usable, windows):
        part = windows.of(runs.masks)
        # Every window is painted row by row, as lengths of unset and set pixels in turn.
        line = runs.line * part.width.take(runs.mask) - (part.top * part.width + part.left).take(runs.mask)
        lengths, _, ends = alternating_lengths(runs.mask, line + runs.start, line + runs.stop, part.height * part.width)
        lengths[ends[:-1]] = 0  # what stands between two masks becomes a set run of no pixels
        pixels, first = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths), 0
        for mask, y, x, h, w in zip(runs.masks, *(side.tolist() for side in part), strict=True):
            masks[mask, y : y + h, x : x + w] = pixels[first : first + h * w].reshape(h, w)
            first += h * w
    return torch.from_numpy(masks)


def _empty_masks(count: int, height: int, width: int) -> BoolArray:
    """(count, height, width) without a set pixel.

    Most of the time of pasting goes to getting memory from the kernel. That of the last stack is cleared and used
    again once nobody looks at it, which takes half the time.
    """
    size = count * height * width
    if not 0 < size <= KEEP_AT_MOST:
        return np.zeros((count, height, width), np.bool_)
    memory = np.zeros(0, np.bool_)
    with contextlib.suppress(IndexError):
        memory = _kept.pop()
    if len(memory) >= size:
        memory[:size] = False
    else:
        memory = np.zeros(size, np.bool_)
    masks = memory[:size].reshape(count, height, width)
    # Every view and tensor of the masks keeps this very array, so nobody sees the memory when it is gone.
    weakref.finalize(masks, _keep, memory).atexit = False
    return masks


def _keep(memory: BoolArray) -> None:
    """Keep the larger of two memories."""
    _kept[:] = [max([memory, *_kept], key=len)]


def encode_templates(templates: Tensor, boxes: Tensor, height: int, width: int) -> list[RLE]:
    """N encodings of what :func:`paste_masks` would paint from the same arguments, without painting it."""
    # COCO counts down the columns: rows and columns change places.
    usable = usable_boxes(boxes.detach().float().numpy())[:, [1, 0, 3, 2]]
    transposed = templates.detach().float().numpy().transpose(0, 2, 1)
    rles: list[RLE] = []
    for runs in find_runs(transposed, usable, windows_of(usable, width, height)):
        column = runs.line * height
        rles += _encode(runs.mask, column + runs.start, column + runs.stop, len(runs.masks), height, width)
    return rles


def encode_masks(masks: BoolArray, boxes: npt.NDArray[np.floating]) -> list[RLE]:
    """N encodings of bit masks, found by looking for runs inside their boxes only.

    Args:
        masks: (N, H, W) bool.
        boxes: (N, 4) ``xyxy``. A mask that has pixels outside its box, rounded outwards, is encoded whole.
    """
    _, height, width = masks.shape
    if len(masks) == 0:
        return []
    windows = windows_of(usable_boxes(boxes), height, width)
    changes = []
    for mask, top, left, rows, columns in zip(masks, *(side.tolist() for side in windows), strict=True):
        window = mask[top : top + rows, left : left + columns]
        if np.count_nonzero(window) != np.count_nonzero(mask):
            window, top, left, (rows, columns) = mask, 0, 0, mask.shape
        # A pixel that is not set comes before the first column and after each, so that runs end with their column.
        padded = np.zeros(1 + columns * (rows + 1), np.bool_)
        padded[1:].reshape(columns, rows + 1)[:, :rows] = window.T
        at = (padded[1:] != padded[:-1]).nonzero()[0]
        # Start, stop, start, ... of the runs of every column, as positions in the whole image, column by column.
        changes.append(at + at // (rows + 1) * (height - rows - 1) + (left * height + top))
    owner = np.repeat(np.arange(len(masks)), [len(of_mask) // 2 for of_mask in changes])
    joined = np.concatenate(changes)
    return _encode(owner, joined[0::2], joined[1::2], len(masks), height, width)


def _encode(mask: IntArray, start: IntArray, stop: IntArray, count: int, height: int, width: int) -> list[RLE]:
    """Encodings of N = ``count`` masks.

    Args:
        mask: (R,) of each run, rising.
        start, stop: (R,) positions in the image, column by column; within a mask rising, touching runs allowed.
        count, height, width: number and size of the masks.
    """
    # Runs that touch, as they do from one column to the next, become one.
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


def move_mask(rle: RLE, source: npt.NDArray[np.float32], target: npt.NDArray[np.float32]) -> RLE:
    """A mask, moved and scaled as the box ``source``, (4,) ``xyxy``, must be to become ``target``."""
    size = rle["size"][0], rle["size"][1]
    scale = (target[2:] - target[:2]).astype(np.float64) / np.maximum(source[2:] - source[:2], 1e-3)
    # Pixel i has its centre at i + 0.5, cv2 has it at i.
    offset = target[:2] - scale * source[:2] + 0.5 * (scale - 1)
    matrix = np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]]])
    moved = cv2.warpAffine(255 * decode_rle(rle, *size), matrix, size[::-1], flags=cv2.INTER_LINEAR)
    return rle_of(moved >= 128, size)


def stretch(probabilities: npt.NDArray[np.floating], height: int, width: int) -> BoolArray:
    """(..., height, width) masks that (..., S, S) probabilities give in a box of this size in pixels.

    Detectron2 pastes the same: bilinear between the centres of the template's pixels, falling to zero around the
    template, cut at one half.
    """
    rows, columns = (_interpolation(length, probabilities.shape[-1]) for length in (height, width))
    mask: BoolArray = rows @ probabilities @ columns.T >= ALMOST_HALF
    return mask


@lru_cache(maxsize=4096)
def _interpolation(length: int, mask_size: int) -> npt.NDArray[np.float32]:
    """(length, S) linear interpolation from S cells to ``length`` cells of the same box; zero around the box."""
    at = (np.arange(length)[:, None] + 0.5) * (mask_size / length) - 0.5
    weights: npt.NDArray[np.float32] = np.maximum(0, 1 - np.abs(at - np.arange(mask_size))).astype(np.float32)
    return weights
