"""From polygons and bit masks to S x S mask templates.

Fitting the components and training use the same code, so the components describe what the network is taught.
Polygons give the bits of Detectron2's ``PolygonMasks.crop_and_resize``. Bit masks follow the rule of
``BitMasks.crop_and_resize``: a template pixel is set where at least half of what it covers is.

Symbols: M instances, P polygons (parts of instances) and V vertices of all of them, S mask side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.floating]
Polygons = Sequence[npt.NDArray[np.float64]]

SMALLEST_SIDE = 0.1
"""Boxes narrower than this many pixels are scaled as if they had this side."""
LONGEST_OUTLINE = 2**21
"""Pixels along the outline of a polygon, across and down added up, at most. pycocotools keeps every step along it,
unchecked: this bounds its memory to some 300 MB. Real outlines have some thousands."""
FARTHEST = 2**26
"""Pixels from the image's corner, at most: pycocotools counts in fifths of a pixel, in 32 bits."""
HALF = 0.5 - 1e-9
"""From which a pixel is set: exactly one half counts, whatever the rounding in float64."""


class RLE(TypedDict):
    """COCO's compressed encoding: ``size`` is [height, width]."""

    size: list[int]
    counts: bytes


class OutlineError(ValueError):
    """Polygons whose outlines would not fit into memory; ``where`` (P,) says which."""

    def __init__(self, length: float, where: BoolArray) -> None:
        super().__init__(f"a polygon with an outline of {length:,.0f} pixels: its coordinates are not an image's")
        self.where = where


def to_rles(objects: Sequence[FloatArray] | Sequence[Mapping[str, Any]], height: int, width: int) -> list[RLE]:
    """Encodings of polygons or of uncompressed runs: this package's only call of pycocotools' ``frPyObjects``.

    Args:
        objects: flat (2n,) arrays x0, y0, x1, y1, ... with n >= 3, or ``{"size", "counts"}`` with a list of runs.
        height, width: of the image.

    Raises:
        OutlineError: a polygon is so far away or so long that its outline would not fit into memory.
    """
    if len(objects) == 0:
        return []
    if not isinstance(objects[0], Mapping):
        flat = np.concatenate(objects)  # type: ignore[arg-type]  # (2V,)
        ends = np.cumsum([len(outline) for outline in objects])  # (P,)
        starts = np.append(0, ends[:-1])
        with np.errstate(over="ignore", invalid="ignore"):
            edges = np.empty_like(flat)  # x and y of every edge; the last one of a polygon leads back to its start
            np.subtract(flat[2:], flat[:-2], out=edges[:-2])
            for axis in range(2):
                edges[ends - 2 + axis] = flat[starts + axis] - flat[ends - 2 + axis]
            lengths = np.add.reduceat(np.abs(edges, out=edges), starts)  # (P,)
            farthest = np.maximum(np.abs(flat[starts]), np.abs(flat[starts + 1])) + lengths
            absurd = ~((lengths <= LONGEST_OUTLINE) & (farthest <= FARTHEST))  # what is not a number, too
        if absurd.any():
            raise OutlineError(lengths[absurd][0], absurd)
    rles: list[RLE] = mask_util.frPyObjects(list(objects), height, width)
    return rles


def rasterize_polygons(instances: Sequence[Polygons], boxes: npt.NDArray[np.float32], mask_size: int) -> BoolArray:
    """Templates of many polygon instances at once.

    Args:
        instances: per instance its parts, each a flat (2n,) array x0, y0, x1, y1, ... with n >= 3.
        boxes: (M, 4) ``xyxy`` in the polygons' coordinates.
        mask_size: S.

    Returns:
        (M, S, S); all False for an instance without parts, or with one that is absurdly long or far from its box.
    """
    num_parts = [len(parts) for parts in instances]
    masks = np.zeros((len(instances), mask_size, mask_size), np.bool_)
    parts = [part for instance in instances for part in instance]
    if not parts:
        return masks
    lengths = np.array([len(part) // 2 for part in parts])
    owner = np.arange(len(instances)).repeat(num_parts)  # (P,)
    owner_of_point = owner.repeat(lengths)  # (V,)
    points = np.concatenate(parts).reshape(-1, 2) - boxes[:, :2].astype(np.float64).take(owner_of_point, axis=0)
    # Template pixels per image pixel, rounded as Detectron2's scalar arithmetic rounds them: an int divided by a
    # float32 scalar is a float32 since NumPy 2, and was a float64 before.
    sides = boxes[:, 2:] - boxes[:, :2]  # (M, 2)
    divisors = np.maximum(sides, np.float32(SMALLEST_SIDE)).astype(np.asarray(mask_size / np.float32(1)).dtype)
    ratios = (mask_size / divisors).astype(np.float64)
    ratios[sides < np.float32(SMALLEST_SIDE)] = mask_size / SMALLEST_SIDE
    with np.errstate(over="ignore"):  # of absurd coordinates
        points *= ratios.take(owner_of_point, axis=0)
    ends = 2 * np.cumsum(lengths)
    flat = points.reshape(-1)
    try:
        rles = to_rles([flat[i:j] for i, j in zip(ends - 2 * lengths, ends, strict=True)], mask_size, mask_size)
    except OutlineError as error:
        absurd = set(owner[error.where].tolist())
        return rasterize_polygons([[] if i in absurd else p for i, p in enumerate(instances)], boxes, mask_size)
    ends = np.cumsum(num_parts)
    groups = [rles[end - count : end] for end, count in zip(ends, num_parts, strict=True) if count]
    merged = [group[0] if len(group) == 1 else mask_util.merge(group) for group in groups]
    masks[np.array(num_parts) > 0] = mask_util.decode(merged).transpose(2, 0, 1)
    return masks


def crop_bitmask(
    mask: npt.NDArray[Any], box: Sequence[float] | FloatArray, height: int, width: int | None = None
) -> BoolArray:
    """Template of a bit mask: ROIAlign (aligned, adaptive sampling) of the box, thresholded at one half.

    Bilinear sampling on a grid is separable, so the average over each template pixel is two small matrix products.

    Args:
        mask: (H, W) of zeros and ones.
        box: ``xyxy`` in pixels of the mask.
        height, width: of the template, which is square where no width is given.

    Returns:
        (height, width).
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    rows, row_slice = sampling_weights(y0, y1, mask.shape[0], height)
    columns, column_slice = sampling_weights(x0, x1, mask.shape[1], width or height)
    coverage: npt.NDArray[np.float64] = rows @ mask[row_slice, column_slice].astype(np.float64) @ columns.T
    return coverage >= HALF


def sampling_weights(low: float, high: float, length: int, mask_size: int) -> tuple[npt.NDArray[np.float64], slice]:
    """(S, n) weights of the n pixels in the slice, a row per template pixel, for one axis of ROIAlign of a box from
    ``low`` to ``high``.
    """
    samples_per_bin = math.ceil((high - low) / mask_size)
    if samples_per_bin <= 0:
        return np.zeros((mask_size, 0)), slice(0, 0)
    step = (high - low) / mask_size / samples_per_bin
    samples = low - 0.5 + (np.arange(mask_size * samples_per_bin) + 0.5) * step
    valid = (samples >= -1) & (samples <= length)
    # Each sample lies between two pixels and takes from both, more from the nearer one.
    at = samples.clip(0, length - 1)
    lower = np.minimum(np.floor(at).astype(np.int64), length - 1)
    upper = np.minimum(lower + 1, length - 1)
    fraction = at - lower
    first, last = int(lower.min()), int(upper.max()) + 1
    length = last - first
    flat = np.arange(len(samples)) // samples_per_bin * length - first
    weights = np.bincount(flat + lower, (1 - fraction) * valid, mask_size * length)
    weights += np.bincount(flat + upper, fraction * valid, mask_size * length)
    return weights.reshape(mask_size, length) / samples_per_bin, slice(first, last)
