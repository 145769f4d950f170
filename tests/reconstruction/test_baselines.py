"""The baselines, on shapes whose numbers are known."""

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from meinst_d2.masks.metrics import mask_iou
from meinst_d2.masks.rasterize import crop_bitmask
from meinst_d2.reconstruction.baselines import (
    STEP,
    BinaryGrid,
    ChebyshevRadius,
    MaskCodec,
    PolarRays,
    fill_star,
    inner_center,
    largest_part,
    outermost_radii,
)

CODECS = [BinaryGrid(), PolarRays(), ChebyshevRadius()]
OUTLINES = CODECS[1:]


def by_name(codec: MaskCodec) -> str:
    return codec.name


def disc(radius: float, center: tuple[float, float] = (70, 60), size: tuple[int, int] = (120, 140)) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.hypot(x - center[0], y - center[1]) < radius


def reconstructed(codec: MaskCodec, mask: np.ndarray) -> np.ndarray:
    vector = codec.encode(mask)
    assert vector.shape == (codec.length,) and np.isfinite(vector).all()
    again = codec.decode(vector, *mask.shape)
    assert again.shape == mask.shape and again.dtype == bool
    return again


def test_lengths() -> None:
    assert [codec.length for codec in CODECS] == [28 * 28, 2 + 36, 2 + 20]
    others = BinaryGrid(mask_size=7), PolarRays(num_rays=9), ChebyshevRadius(num_coeffs=4)
    assert [codec.length for codec in others] == [49, 11, 6]


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_a_disc_comes_back(codec: MaskCodec) -> None:
    least = {"area-grid": 0.95, "polar": 0.98, "chebyshev": 0.99}[codec.name]
    assert mask_iou(reconstructed(codec, disc(50)), disc(50)) > least


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
def test_an_empty_mask_stays_empty(codec: MaskCodec) -> None:
    assert not reconstructed(codec, np.zeros((9, 12), bool)).any()


@pytest.mark.parametrize("codec", OUTLINES, ids=by_name)
@pytest.mark.parametrize("at", [(4, 6), (0, 0), (8, 11)])
def test_one_pixel_comes_back(codec: MaskCodec, at: tuple[int, int]) -> None:
    mask = np.zeros((9, 12), bool)
    mask[at] = True
    assert (reconstructed(codec, mask) == mask).all()


@pytest.mark.parametrize("codec", CODECS, ids=by_name)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
def test_a_full_box_of_a_pixel_or_a_line(codec: MaskCodec, shape: tuple[int, int]) -> None:
    mask = np.ones(shape, bool)
    again = reconstructed(codec, mask)
    if codec.name == "chebyshev" and shape != (1, 1):
        assert mask_iou(again, mask) > 0  # 20 coefficients cannot follow a radius with two spikes
    else:
        assert mask_iou(again, mask) > 0.94


@pytest.mark.parametrize("codec", OUTLINES, ids=by_name)
def test_an_outline_fills_a_hole(codec: MaskCodec) -> None:
    mask = disc(50) & ~disc(30)
    again = reconstructed(codec, mask)
    assert again[disc(30)].all() and mask_iou(again, mask) == pytest.approx(1 - (30 / 50) ** 2, abs=0.02)
    assert not reconstructed(CODECS[0], mask)[disc(27)].any()


@pytest.mark.parametrize("codec", OUTLINES, ids=by_name)
def test_an_outline_loses_the_smaller_part(codec: MaskCodec) -> None:
    large, small = disc(30, (35, 60)), disc(20, (110, 60))
    again = reconstructed(codec, large | small)
    assert not again[small].any() and mask_iou(again, large) > 0.97
    assert reconstructed(CODECS[0], large | small)[disc(17, (110, 60))].all()


def test_polar_distances_of_a_rectangle() -> None:
    mask = np.zeros((50, 60), bool)
    mask[10:30, 5:45] = True  # 40 wide, 20 high, centre (25, 20)
    vector = PolarRays().encode(mask)
    assert vector[:2].tolist() == [25, 20] and vector[2:][[0, 9, 18, 27]] == pytest.approx([20, 10, 20, 10], abs=STEP)
    assert vector[2:][2] == pytest.approx(20 / np.cos(np.radians(20)), abs=2 * STEP)
    assert vector[2:][6] == pytest.approx(10 / np.sin(np.radians(60)), abs=2 * STEP)


def test_a_ray_counts_its_last_exit_and_none_counts_nothing() -> None:
    mask = np.zeros((11, 40), bool)
    mask[5, 10:12] = mask[5, 20:25] = True
    assert outermost_radii(mask, np.array([5.5, 5.5]), 4) == pytest.approx([25 - 5.5, 0, 0, 0], abs=STEP)


def test_the_center_may_lie_beside_the_mask() -> None:
    mask = np.ones((40, 40), bool)
    mask[10:30, 10:] = False  # open to the right
    vector = PolarRays().encode(mask)
    column, row = vector[:2].astype(int)
    assert not mask[row, column] and vector[2] == 0 and reconstructed(PolarRays(), mask).any()


def test_chebyshev_of_a_disc_is_a_constant() -> None:
    vector = ChebyshevRadius().encode(disc(50))
    assert vector[2] == pytest.approx(50, abs=0.7) and np.abs(vector[3:]).max() < 0.7


def test_more_coefficients_fit_better() -> None:
    angle = np.arctan2(*(np.mgrid[:120, :140] + 0.5 - np.array([60, 70])[:, None, None]))
    y, x = np.mgrid[:120, :140] + 0.5
    flower = np.hypot(x - 70, y - 60) < 40 + 12 * np.cos(5 * angle)
    fits = [mask_iou(reconstructed(ChebyshevRadius(num_coeffs=n), flower), flower) for n in (4, 12, 20, 40)]
    assert fits == sorted(fits) and fits[-1] > 0.98 and fits[0] < 0.8


def test_the_inner_center_is_farthest_from_every_edge() -> None:
    mask = np.zeros((30, 50), bool)
    mask[2:13, 5:16] = True  # 11 x 11, centre (10.5, 7.5)
    mask[6:9, 16:45] = True  # and a tail, which pulls the mass centre away
    assert inner_center(mask).tolist() == [10.5, 7.5]
    assert inner_center(np.ones((9, 5), bool))[0] == 2.5  # the array's border is an edge


def test_parts_connect_at_corners() -> None:
    mask = np.zeros((6, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = True
    mask[0, 6:8] = True
    assert largest_part(mask).sum() == 3 and not largest_part(mask)[0, 6]


def test_fill_star_is_the_polygon(rng: np.random.Generator) -> None:
    y, x = np.mgrid[:60, :80] + 0.5
    points = np.stack((x.ravel(), y.ravel()), axis=1)
    for count in (3, 7, 36):
        center, radii = rng.uniform(25, 45, 2), rng.uniform(2, 40, count)
        angle = 2 * np.pi * np.arange(count) / count
        corners = center + radii[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)
        expected = Polygon(corners).contains_points(points).reshape(60, 80)
        assert (fill_star(center, radii, 60, 80) == expected).all()


def test_a_grid_is_the_template_of_its_mask(rng: np.random.Generator) -> None:
    mask = rng.random((28, 28)) < 0.5
    assert (reconstructed(BinaryGrid(), mask) == mask).all()
    large = disc(50)
    assert (BinaryGrid().encode(large).reshape(28, 28) == crop_bitmask(large, (0, 0, 140, 120), 28)).all()
