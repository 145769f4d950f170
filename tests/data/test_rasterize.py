import numpy as np
import pycocotools.mask as mask_util
import pytest

from meinst_d2.data.rasterize import crop_bitmask, decode_rle, rasterize_polygons


def rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([x0, y0, x1, y0, x1, y1, x0, y1])


SQUARE = rectangle(10.0, 10, 20, 20)
BOX = np.array([[10, 10, 20, 20]], np.float32)


def test_a_square_fills_its_box() -> None:
    assert rasterize_polygons([[SQUARE]], BOX, 5).all()


def test_the_left_half_of_a_box() -> None:
    mask = rasterize_polygons([[rectangle(10, 10, 15, 20)]], BOX, 4)[0]
    assert mask.tolist() == [[True, True, False, False]] * 4


def test_the_box_need_not_be_square() -> None:
    triangle = np.array([0.0, 0, 40, 0, 0, 10])
    mask = rasterize_polygons([[triangle]], np.array([[0, 0, 40, 10]], np.float32), 28)[0]
    assert mask[0, 0] and not mask[-1, -1]
    assert mask.mean() == pytest.approx(0.5, abs=0.03)


def test_parts_are_merged_and_instances_without_parts_are_empty() -> None:
    left, right = rectangle(10, 10, 13, 20), rectangle(17, 10, 20, 20)
    masks = rasterize_polygons([[left, right], [], [left]], BOX.repeat(3, 0), 10)
    assert masks[0].all(0).tolist() == [True] * 3 + [False] * 4 + [True] * 3
    assert not masks[1].any()
    assert masks[2].all(0).tolist() == [True] * 3 + [False] * 7


def test_no_instances() -> None:
    assert rasterize_polygons([], np.zeros((0, 4), np.float32), 28).shape == (0, 28, 28)


def test_one_pixel_objects() -> None:
    pixel = np.array([3.0, 4, 4, 4, 4, 5, 3, 5])
    assert rasterize_polygons([[pixel]], np.array([[3, 4, 4, 5]], np.float32), 28).all()
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
    template = crop_bitmask(mask, [-10, 0, 10, 10], 4)
    assert template.tolist() == [[False, False, True, True]] * 4
    assert not crop_bitmask(mask, [30, 30, 40, 40], 4).any()
    assert not crop_bitmask(mask, [5, 5, 5, 9], 4).any()


@pytest.mark.parametrize("compressed", [True, False])
def test_rle_round_trip(rng: np.random.Generator, compressed: bool) -> None:
    for density in (0, 0.03, 0.5, 1):
        mask = (rng.random((13, 37)) < density).astype(np.uint8)
        rle = mask_util.encode(np.asfortranarray(mask))
        if not compressed:
            flat = np.concatenate(([0], mask.ravel(order="F")))
            edges = np.concatenate(((np.diff(flat) != 0).nonzero()[0], [mask.size]))
            rle = {"size": [13, 37], "counts": np.diff(np.concatenate(([0], edges))).tolist()}
        assert (decode_rle(rle, 13, 37) == mask).all()


def test_counts_may_be_text() -> None:
    rle = mask_util.encode(np.asfortranarray(np.eye(50, dtype=np.uint8)))
    assert (decode_rle({"size": [50, 50], "counts": rle["counts"].decode()}, 50, 50) == np.eye(50)).all()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [4, 5], "counts": [20]}, r"size \[4, 5\] in an image of 4 x 4"),
        ({"counts": [16]}, "size None"),
        ({"size": [4, 4], "counts": [15]}, "do not add up to 4 x 4"),
        ({"size": [4, 4], "counts": [10, -2, 8]}, "do not add up"),
        ({"size": [4, 4], "counts": [8.0, 8.0]}, "do not add up"),
        ({"size": [4, 4], "counts": None}, "counts of type NoneType"),
        ({"size": [4, 4], "counts": "`"}, "end within a run"),
        ({"size": [4, 4], "counts": "\x01"}, "no compressed runs"),
        ({"size": [4, 4], "counts": "ooooooooo0"}, "no compressed runs"),
        ({"size": [4, 4], "counts": "``0"}, "do not add up"),
    ],
)
def test_malformed_rles_never_reach_pycocotools(rle: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rle(rle, 4, 4)
