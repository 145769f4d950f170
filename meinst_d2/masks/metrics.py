"""How alike two masks are: over their area, and along their edge."""

from __future__ import annotations

import cv2
import numpy as np

from meinst_d2.masks.rasterize import BoolArray


def mask_iou(a: BoolArray, b: BoolArray) -> float:
    """Intersection over union of two masks of one shape; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def boundary_region(mask: BoolArray) -> BoolArray:
    """(H, W) pixels of a mask within a distance d of what is not the mask, which includes what lies outside the array.

    d is 2 % of the array's diagonal, rounded, at least 1, counted in king's moves (Cheng et al. 2021,
    arXiv 2103.16562: there the array is the image).
    """
    d = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    square = np.ones((2 * d + 1, 2 * d + 1), np.uint8)
    inner = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    region: BoolArray = mask & (inner == 0)
    return region
