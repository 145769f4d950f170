"""IoU and boundary IoU, by worked arithmetic and by their definitions."""

import numpy as np

from meinst_d2.masks.metrics import boundary_region, mask_iou
from tests.conftest import blob_masks


def square(low: int, high: int, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[low:high, low:high] = True
    return mask


def test_iou() -> None:
    assert mask_iou(square(0, 10), square(5, 15)) == 25 / 175 and mask_iou(square(0, 0), square(0, 0)) == 1
    assert mask_iou(square(0, 0), square(0, 10)) == 0


def test_the_boundary_of_a_square() -> None:
    region = boundary_region(square(30, 70))  # 2 % of the diagonal of 100 x 100 is 2.8: 3 pixels
    assert (region == (square(30, 70) & ~square(33, 67))).all()


def test_the_border_of_the_array_is_an_edge() -> None:
    assert boundary_region(square(0, 100)).sum() == 100**2 - 94**2


def test_small_arrays_have_a_boundary_of_one_pixel() -> None:
    assert boundary_region(np.ones((5, 7), bool)).sum() == 35 - 15


def test_boundary_iou_of_shifted_squares() -> None:
    a, b = square(30, 70), square(31, 71)
    ring = 40**2 - 34**2
    regions = boundary_region(a), boundary_region(b)
    both = (regions[0] & regions[1]).sum()
    assert mask_iou(*regions) == both / (2 * ring - both) < mask_iou(a, b)
    assert mask_iou(regions[0], boundary_region(~a & False)) == 0


def test_the_boundary_by_its_definition(rng: np.random.Generator) -> None:
    for mask in blob_masks(rng, 5, 60):
        d = round(0.02 * np.hypot(60, 60))
        padded = np.pad(mask, d)
        inner = np.all([padded[i : i + 60, j : j + 60] for i in range(2 * d + 1) for j in range(2 * d + 1)], axis=0)
        assert (boundary_region(mask) == (mask & ~inner)).all()


def test_symmetry(rng: np.random.Generator) -> None:
    a, b = blob_masks(rng, 2, 50)
    assert mask_iou(a, b) == mask_iou(b, a)
