import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.encoding import PixelMoments
from tests.conftest import blob_masks


def moments_of(masks: np.ndarray) -> PixelMoments:
    moments = PixelMoments(masks.shape[1])
    moments.update(masks)
    return moments


def test_worked_example() -> None:
    moments = moments_of(np.array([[[1, 1], [0, 0]], [[1, 0], [0, 1]], [[1, 0], [0, 0]]], np.uint8))
    assert moments.count == 3
    assert moments.total.tolist() == [3, 1, 0, 1]
    assert moments.cooccurrence.tolist() == [[3, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    assert moments.mean().tolist() == [1, 1 / 3, 0, 1 / 3]


def test_covariance_is_numpys(rng: np.random.Generator) -> None:
    masks = blob_masks(rng, 300, 8)
    np.testing.assert_allclose(moments_of(masks).covariance(), np.cov(masks.reshape(300, -1).T), atol=1e-14)


def test_any_split_and_order_gives_the_same_bits(rng: np.random.Generator) -> None:
    masks = blob_masks(rng, 500, 10)
    whole = moments_of(masks)
    shuffled = masks[rng.permutation(500)]
    merged = PixelMoments(10)
    for part in np.array_split(shuffled, 7):
        merged.merge(moments_of(part))
    assert merged.count == whole.count
    assert (merged.total == whole.total).all()
    assert (merged.cooccurrence == whole.cooccurrence).all()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 63, 1000, 8192, 8193]),
    side=st.sampled_from([1, 2, 7, 14, 28]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_masks_are_counted_exactly(rows: int, side: int, density: float, seed: int) -> None:
    masks = np.random.default_rng(seed).random((rows, side, side)) < density
    values = masks.reshape(rows, -1).astype(np.float64)
    assert (moments_of(masks).cooccurrence == values.T @ values).all()


def test_no_masks_change_nothing() -> None:
    moments = moments_of(np.zeros((0, 4, 4), bool))
    assert moments.count == 0 and not moments.cooccurrence.any()
    with pytest.raises(ValueError, match="at least 2 masks, got 0"):
        moments.covariance()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((3, 4, 5), bool), r"expected masks of shape \(M, 4, 4\), got \(3, 4, 5\)"),
        (np.full((1, 4, 4), 255, np.uint8), "zeros and ones"),
    ],
)
def test_wrong_masks_are_refused(masks: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelMoments(4).update(masks)


def test_moments_of_two_mask_sizes_do_not_mix() -> None:
    with pytest.raises(ValueError, match="mask size 8 into 4"):
        PixelMoments(4).merge(PixelMoments(8))
