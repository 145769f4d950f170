import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from meinst_d2.encoding import PCAEncoder, PixelMoments, SigmoidClamp, fit_pca
from tests.conftest import blob_masks, moments_of

FIXED = SigmoidClamp(0.01, 0.01)


@pytest.fixture(scope="module")
def masks() -> np.ndarray:
    return blob_masks(np.random.default_rng(1), 3000, 12)


def signal(masks: np.ndarray, clamp: SigmoidClamp | None) -> np.ndarray:
    pixels = masks.reshape(len(masks), -1).astype(np.float64)
    return pixels if clamp is None else (2 * pixels - 1) * math.log((1 - clamp.low) / clamp.low)


def principal_angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between the row spaces, from the sine, which is exact for small ones."""
    return np.arcsin(np.clip(np.linalg.svd(b - (b @ a.T) @ a, compute_uv=False), 0, 1))


@pytest.mark.parametrize("clamp", [None, FIXED])
def test_equals_scikit_learns_exact_pca(masks: np.ndarray, clamp: SigmoidClamp | None) -> None:
    dim = 30
    ours = fit_pca(moments_of(masks), clamp).truncated(dim)
    theirs = PCA(dim, svd_solver="covariance_eigh").fit(signal(masks, clamp))
    assert principal_angles(ours.components, theirs.components_).max() < 1e-6
    np.testing.assert_allclose(ours.explained_variance, theirs.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(ours.explained_variance_ratio, theirs.explained_variance_ratio_, rtol=1e-6)
    np.testing.assert_allclose(ours.mean, theirs.mean_, atol=1e-12)


def test_closed_form_is_the_limit_of_random_clamps(masks: np.ndarray) -> None:
    clamp = SigmoidClamp(0.01, 0.05)
    closed = fit_pca(moments_of(masks), clamp)
    rng = np.random.default_rng(2)
    signs = 2.0 * masks.reshape(len(masks), -1) - 1

    def error(draws: int) -> tuple[float, float]:
        covariance, mean = np.zeros((144, 144)), np.zeros(144)
        for _ in range(draws):
            v = np.maximum(clamp.high * rng.random(signs.shape), clamp.low)
            logits = signs * np.log((1 - v) / v)
            covariance += np.cov(logits.T) / draws
            mean += logits.mean(0) / draws
        values = np.linalg.eigvalsh(covariance)[::-1]
        return (
            float(np.abs(values[: closed.dim] / closed.explained_variance - 1).max()),
            float(np.abs(mean - closed.mean).max()),
        )

    few, many = error(2), error(60)
    assert many[0] < 0.01 and many[1] < 0.01 and many[0] < few[0] and many[1] < few[1]


def test_components_do_not_depend_on_the_clamp(masks: np.ndarray) -> None:
    moments = moments_of(masks)
    np.testing.assert_array_equal(fit_pca(moments, FIXED).components, fit_pca(moments, SigmoidClamp()).components)


def test_moments_of_the_random_logit_match_a_sample() -> None:
    mean, variance = SigmoidClamp(0.01, 0.05).logit_moments()
    v = np.maximum(0.05 * np.random.default_rng(0).random(2_000_000), 0.01)
    c = np.log((1 - v) / v)
    assert mean == pytest.approx(c.mean(), abs=2e-3) and variance == pytest.approx(c.var(), abs=2e-3)
    # The mean in closed form: the integral of a logit is the binary entropy.
    entropy = lambda p: -(1 - p) * math.log(1 - p) - p * math.log(p)  # noqa: E731
    assert mean == pytest.approx(0.2 * math.log(99) + (entropy(0.05) - entropy(0.01)) / 0.05, abs=1e-13)


@pytest.mark.parametrize("bounds", [(0, 0.05), (0.05, 0.01), (0.1, 0.5)])
def test_impossible_clamps_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 < low <= high < 0.5"):
        SigmoidClamp(*bounds)


def test_rows_are_orthonormal_and_variances_fall(masks: np.ndarray) -> None:
    basis = fit_pca(moments_of(masks))
    np.testing.assert_allclose(basis.components @ basis.components.T, np.eye(basis.dim), atol=1e-10)
    assert (np.diff(basis.explained_variance) <= 1e-12).all()


def test_the_first_largest_entry_is_positive_even_in_a_tie() -> None:
    mirrored = np.zeros((40, 4, 4), bool)
    mirrored[:20] = np.random.default_rng(3).random((20, 4, 4)) < 0.5
    mirrored[20:] = mirrored[:20, :, ::-1]
    for row in fit_pca(moments_of(mirrored), None).components:
        assert row[(np.abs(row) >= np.abs(row).max() * (1 - 1e-6)).argmax()] > 0


def test_too_few_masks_and_equal_masks_are_errors(masks: np.ndarray) -> None:
    with pytest.raises(ValueError, match="determine 19 components, not 60: choose --dim 19 or less"):
        fit_pca(moments_of(masks[:20])).truncated(60)
    with pytest.raises(ValueError, match="all 5 masks are the same"):
        fit_pca(moments_of(np.ones((5, 4, 4), bool)))
    with pytest.raises(ValueError, match="at least 2 masks, got 1"):
        fit_pca(moments_of(masks[:1]))


def fitted_encoder(masks: np.ndarray, dim: int, **options: object) -> PCAEncoder:
    clamp = SigmoidClamp() if options.get("sigmoid", True) else None
    encoder = PCAEncoder(dim=dim, mask_size=masks.shape[1], **options)
    encoder.load_bases([fit_pca(moments_of(masks), clamp).truncated(dim)])
    return encoder


def test_whitened_coefficients_have_unit_variance(masks: np.ndarray) -> None:
    encoder = fitted_encoder(masks, 20, clamp=FIXED)
    encoder.load_bases([fit_pca(moments_of(masks), FIXED).truncated(20)])
    coeffs = encoder.encode(torch.from_numpy(masks))
    torch.testing.assert_close(coeffs.var(0), torch.ones(20), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(coeffs.mean(0), torch.zeros(20), rtol=0, atol=1e-3)


def test_random_clamp_is_drawn_per_call_and_fixed_clamp_never(masks: np.ndarray) -> None:
    batch = torch.from_numpy(masks[:4])
    random, fixed = fitted_encoder(masks, 10), fitted_encoder(masks, 10, clamp=FIXED)
    assert not torch.equal(random.encode(batch), random.encode(batch))
    state = torch.get_rng_state()
    assert torch.equal(fixed.encode(batch), fixed.encode(batch))
    random.eval()
    assert torch.equal(random.encode(batch), random.encode(batch))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mean_of_random_encodings_is_the_encoding_in_evaluation(masks: np.ndarray) -> None:
    encoder = fitted_encoder(masks, 10)
    drawn = torch.stack([encoder.encode(torch.from_numpy(masks[:4])) for _ in range(2000)])
    torch.testing.assert_close(drawn.mean(0), encoder.eval().encode(torch.from_numpy(masks[:4])), rtol=0, atol=0.02)


def test_worked_example() -> None:
    moments = moments_of(np.array([[[1, 1], [0, 0]], [[1, 0], [0, 1]], [[1, 0], [0, 0]]], np.uint8))
    assert moments.count == 3 and moments.total.tolist() == [3, 1, 0, 1]
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
    assert merged.count == whole.count and (merged.total == whole.total).all()
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
