"""Baselines: other ways to write a mask as a vector, a grid of bits and two descriptions of an outline (figure 1).

All take and give (H, W) bool masks at the object's own resolution. An outline can say neither that an object has a
hole nor that it has a second part: what it describes is the outer edge of the largest part.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from meinst_d2.masks.paste import stretch
from meinst_d2.masks.rasterize import BoolArray, crop_bitmask

Vector = npt.NDArray[np.float64]

STEP = 0.25
"""Pixels between the points of a ray at which the mask is asked."""


class BinaryGrid:
    """The mask itself, at S x S: a cell is set where at least half of it is. S * S numbers."""

    def __init__(self, *, mask_size: int = 28) -> None:
        self.name, self.length, self.mask_size = "area-grid", mask_size**2, mask_size

    def encode(self, mask: BoolArray) -> Vector:
        height, width = mask.shape
        return crop_bitmask(mask, (0, 0, width, height), self.mask_size).ravel().astype(np.float64)

    def decode(self, vector: Vector, height: int, width: int) -> BoolArray:
        return stretch(vector.reshape(self.mask_size, self.mask_size), height, width)


class PolarRays:
    """Distances from the mass centre to the outermost edge along rays at equal angles.

    As in PolarMask (Xie et al., CVPR 2020, section 3.2): a ray that leaves the mask more than once counts its last
    exit, one that never meets it has length 0, and the ends of the rays are joined by straight lines. 36 rays (at
    least 3), and the 2 coordinates of the centre, which a detector knows from the location that predicts.
    """

    def __init__(self, *, num_rays: int = 36) -> None:
        self.name, self.length, self.num_rays = "polar", 2 + num_rays, num_rays

    def encode(self, mask: BoolArray) -> Vector:
        if not mask.any():
            return np.zeros(self.length)
        part = largest_part(mask)
        rows, columns = part.nonzero()
        center = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        return np.concatenate((center, outermost_radii(part, center, self.num_rays)))

    def decode(self, vector: Vector, height: int, width: int) -> BoolArray:
        return fill_star(vector[:2], vector[2:], height, width)


class ChebyshevRadius:
    """Chebyshev coefficients of the radius around the inner centre, as a function of the angle.

    As in ESE-Seg (Xu et al., ICCV 2019, section 3): the inner centre is the point of the object farthest from its
    edge, the outermost edge is measured at every degree, and a polynomial of the angle is fitted by least squares.
    20 coefficients, one more than its degree, and the 2 coordinates of the centre.
    """

    ANGLES = 360

    def __init__(self, *, num_coeffs: int = 20) -> None:
        self.name, self.length, self.num_coeffs = "chebyshev", 2 + num_coeffs, num_coeffs
        turns = np.arange(self.ANGLES) / self.ANGLES
        self._polynomials = np.polynomial.chebyshev.chebvander(2 * turns - 1, num_coeffs - 1)  # (ANGLES, num_coeffs)
        self._fit = np.linalg.pinv(self._polynomials)

    def encode(self, mask: BoolArray) -> Vector:
        if not mask.any():
            return np.zeros(self.length)
        part = largest_part(mask)
        center = inner_center(part)
        return np.concatenate((center, self._fit @ outermost_radii(part, center, self.ANGLES)))

    def decode(self, vector: Vector, height: int, width: int) -> BoolArray:
        return fill_star(vector[:2], np.maximum(self._polynomials @ vector[2:], 0), height, width)


MaskCodec = BinaryGrid | PolarRays | ChebyshevRadius
"""``encode`` makes a vector (length,) of an (H, W) mask of any size, ``decode`` one of the size that was encoded."""


def largest_part(mask: BoolArray) -> BoolArray:
    """The connected part (corners connect) with the most pixels, of an (H, W) mask that is not empty."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax(), np.bool_)


def inner_center(mask: BoolArray) -> Vector:
    """(x, y) of the pixel farthest from all that is not the mask, which includes what lies outside the array."""
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = np.unravel_index(distance.argmax(), mask.shape)
    return np.array([column + 0.5, row + 0.5])


def outermost_radii(mask: BoolArray, center: Vector, num_rays: int) -> Vector:
    """How far the mask reaches from a point, in every direction.

    Args:
        mask: (H, W).
        center: (x, y) in pixels, where the first pixel's centre is (0.5, 0.5).
        num_rays: directions, from (1, 0) on towards (0, 1).

    Returns:
        (num_rays,) pixels, good to ``STEP / 2``; 0 in a direction that does not meet the mask.
    """
    height, width = mask.shape
    angles = 2 * np.pi * np.arange(num_rays) / num_rays
    reach = np.hypot(*np.maximum(center, [width - center[0], height - center[1]]))
    at = np.arange(STEP / 2, reach + STEP, STEP)  # middles of the steps
    columns = np.floor(center[0] + np.cos(angles)[:, None] * at).astype(np.int64)  # (num_rays, steps)
    rows = np.floor(center[1] + np.sin(angles)[:, None] * at).astype(np.int64)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    hit = inside & mask[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    last = hit.shape[1] - hit[:, ::-1].argmax(axis=1)  # steps up to and with the last one on the mask
    return np.where(hit.any(axis=1), last * STEP, 0.0)


def fill_star(center: Vector, radii: Vector, height: int, width: int) -> BoolArray:
    """(height, width) pixels whose centre lies in the polygon with corners in equally spaced directions from a point.

    Args:
        center: (x, y) in pixels.
        radii: (n,) distance of each corner, not negative; n >= 3.
        height, width: of the mask.
    """
    x, y = np.arange(width) + 0.5 - center[0], (np.arange(height) + 0.5 - center[1])[:, None]
    sector = 2 * np.pi / len(radii)
    angle = np.arctan2(y, x) % (2 * np.pi)
    index = np.minimum((angle / sector).astype(np.int64), len(radii) - 1)
    before = angle - index * sector
    a, b = radii[index], np.roll(radii, -1)[index]
    # The corners a and b and the point lie on one line where the triangles' areas agree.
    areas = np.hypot(x, y) * (a * np.sin(before) + b * np.sin(sector - before))
    return np.asarray(areas < a * b * np.sin(sector), np.bool_)
