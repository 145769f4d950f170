import numpy as np
import pytest

from meinst_d2.masks.rasterize import OutlineError, crop_bitmask, rasterize_polygons, to_rles
from meinst_d2.masks.rle import FAR_POLYGON, UnusableInstance, rle_of


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1])


SQUARE = rectangle(10.0, 10, 20, 20)
BOX = np.array([[10, 10, 20, 20]], np.float32)


def test_a_square_fills_its_box() -> None:
    assert rasterize_polygons([[SQUARE]], BOX, 5).all()


def test_the_left_half_of_a_box() -> None:
    assert rasterize_polygons([[rectangle(10, 10, 15, 20)]], BOX, 4)[0].tolist() == [[True, True, False, False]] * 4


def test_the_box_need_not_be_square() -> None:
    mask = rasterize_polygons([[np.array([0.0, 0, 40, 0, 0, 10])]], np.array([[0, 0, 40, 10]], np.float32), 28)[0]
    assert mask[0, 0] and not mask[-1, -1] and mask.mean() == pytest.approx(0.5, abs=0.03)


def test_parts_are_merged_and_instances_without_parts_are_empty() -> None:
    left, right = rectangle(10, 10, 13, 20), rectangle(17, 10, 20, 20)
    masks = rasterize_polygons([[left, right], [], [left]], BOX.repeat(3, 0), 10)
    assert masks[0].all(0).tolist() == [True] * 3 + [False] * 4 + [True] * 3 and not masks[1].any()
    assert masks[2].all(0).tolist() == [True] * 3 + [False] * 7


@pytest.mark.parametrize("far", [3e7, 1e12, 1e150, float("inf"), float("nan")])
def test_an_outline_that_would_not_fit_into_memory_is_never_drawn(far: float) -> None:
    """One coordinate of 3e7 took 2 GB."""
    absurd = np.array([10.0, 10, far, 10, 20, 20])
    with pytest.raises(OutlineError, match="a polygon with an outline of .* pixels") as error:
        to_rles([SQUARE, absurd, SQUARE], 30, 30)
    assert error.value.where.tolist() == [False, True, False]
    with pytest.raises(UnusableInstance, match=FAR_POLYGON if far < 1e200 else "unknown kind"):
        rle_of([absurd.tolist()], (30, 30))
    masks = rasterize_polygons([[SQUARE], [SQUARE, absurd], [SQUARE]], BOX.repeat(3, 0), 5)
    assert masks.all((1, 2)).tolist() == [True, False, True] and not masks[1].any()


def test_a_polygon_far_away_is_not_an_absurd_one() -> None:
    assert not rasterize_polygons([[SQUARE + 1e6]], BOX, 5).any()
    (far,) = to_rles([SQUARE + 1e6], 30, 30)
    assert far == to_rles([SQUARE - 1e6], 30, 30)[0]
    with pytest.raises(OutlineError):
        to_rles([SQUARE + 2.0**26], 30, 30)


def test_no_instances() -> None:
    assert rasterize_polygons([], np.zeros((0, 4), np.float32), 28).shape == (0, 28, 28)


def test_one_pixel_objects() -> None:
    assert rasterize_polygons([[np.array([3.0, 4, 4, 4, 4, 5, 3, 5])]], np.array([[3, 4, 4, 5]], np.float32), 28).all()
    mask = np.zeros((9, 9), bool)
    mask[4, 3] = True
    assert crop_bitmask(mask, [3, 4, 4, 5], 28)[10:18, 10:18].all()  # bilinear: the corners fade


def test_a_bit_mask_at_its_own_size_is_itself(rng: np.random.Generator) -> None:
    mask = rng.random((28, 28)) < 0.5
    assert (crop_bitmask(mask, [0, 0, 28, 28], 28) == mask).all()


def test_a_template_pixel_needs_half_of_what_it_covers() -> None:
    mask = np.zeros((4, 4), bool)
    mask[:2, 0] = True  # half of the top-left quarter
    mask[0, 2] = True  # a quarter of the top-right one
    assert crop_bitmask(mask, [0, 0, 4, 4], 2).tolist() == [[True, False], [False, False]]


def test_boxes_that_leave_the_bit_mask_see_zeros_there() -> None:
    mask = np.ones((10, 10), bool)
    assert crop_bitmask(mask, [-10, 0, 10, 10], 4).tolist() == [[False, False, True, True]] * 4
    assert not crop_bitmask(mask, [30, 30, 40, 40], 4).any() and not crop_bitmask(mask, [5, 5, 5, 9], 4).any()
