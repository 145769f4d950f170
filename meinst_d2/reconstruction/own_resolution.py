"""An object's mask at its own resolution: what a template is a small picture of."""

from __future__ import annotations

import math

import numpy as np
import pycocotools.mask as mask_util

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.masks.rasterize import BoolArray, crop_bitmask, to_rles
from meinst_d2.masks.rle import bitmask_of, usable_polygons

LONGEST_SIDE = 320
"""Pixels of the longer side of a box above which it is scaled down."""

SIZES = ("small", "medium", "large")
_SIZE_LIMITS = (32**2, 96**2)  # COCO's


def own_resolution_mask(annotation: InstanceAnnotation) -> BoolArray:
    """The mask in its box, with a pixel per pixel of the image, or fewer where that would be over 320 a side.

    Args:
        annotation: usable, see :func:`meinst_d2.data.instances.make_templates`.

    Returns:
        (height, width) of the box, rounded and at least 1.
    """
    x0, y0, x1, y1 = (float(v) for v in annotation.box)
    scale = min(1.0, LONGEST_SIDE / max(x1 - x0, y1 - y0))
    width, height = (max(1, round(side * scale)) for side in (x1 - x0, y1 - y0))
    if not isinstance(annotation.segmentation, list):
        mask = bitmask_of(annotation.segmentation, annotation.image_size)
        return crop_bitmask(mask, annotation.box, height, width)
    ratio = np.array([width / (x1 - x0), height / (y1 - y0)])
    parts = [((part.reshape(-1, 2) - (x0, y0)) * ratio).ravel() for part in usable_polygons(annotation.segmentation)]
    drawn: BoolArray = mask_util.decode(mask_util.merge(to_rles(parts, height, width))).astype(bool)
    return drawn


def size_of(annotation: InstanceAnnotation, mask: BoolArray) -> int:
    """Index into ``SIZES``, by the annotation's area as COCO's evaluation has it.

    Args:
        annotation: where it says no area, the mask's share of the box counts.
        mask: (H, W), from :func:`own_resolution_mask`.
    """
    area = annotation.area
    if not isinstance(area, (int, float)) or not math.isfinite(area):
        x0, y0, x1, y1 = annotation.box
        area = float(mask.mean() * (x1 - x0) * (y1 - y0))
    return sum(area >= limit for limit in _SIZE_LIMITS)
