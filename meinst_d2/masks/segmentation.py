"""The segmentation of one annotation: polygons, an RLE or a bit mask, and why it cannot be used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util

from meinst_d2.masks.rasterize import RLE, to_rles
from meinst_d2.masks.rle import decode_rle, runs_of

CROWD = "crowd region"
NO_MASK = "no segmentation"
FEW_POINTS = "polygon with fewer than 3 points"
NO_BOX = "box without area"
NO_IMAGE = "image that is not in the file"
HUGE_BOX = "box larger than any image"
BAD_RLE = "RLE that does not fit its image"
MALFORMED = "segmentation of an unknown kind"
FAR_POLYGON = "polygon that is absurdly long or far away"
EMPTY = "mask without a pixel in its box"
REASONS = (CROWD, NO_MASK, FEW_POINTS, NO_BOX, BAD_RLE, MALFORMED, EMPTY, NO_IMAGE, HUGE_BOX)

LONGEST_SIDE = 2.0**20
"""Pixels of a box: what cropping an RLE costs grows with it."""


class UnusableInstance(ValueError):
    """An annotation without a usable mask; ``reason`` is one of this module's names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def usable_polygons(segmentation: Sequence[Any]) -> list[npt.NDArray[np.float64]]:
    """The parts of a polygon segmentation that have at least 3 points, as flat arrays.

    Raises:
        UnusableInstance: there is none, or the coordinates are no numbers.
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
        return segmentation.astype(bool)
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
        try:
            merged: RLE = mask_util.merge(to_rles(usable_polygons(segmentation), *image_size))
        except UnusableInstance:
            raise
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
