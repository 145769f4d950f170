"""Encoding at the ends: every component, coefficients of 1e4, masks without or full of pixels, half precision."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from meinst_d2.encoding import (
    DCTEncoder,
    MaskEncoder,
    PCABasis,
    PCAEncoder,
    PixelEncoder,
    PixelMoments,
    SigmoidClamp,
    fit_pca,
    load_components,
    save_components,
)

SIDE = 6
CLAMP = SigmoidClamp(0.02, 0.02)
NAMES = ["pca", "dct", "pixel"]


def complete(name: str, *, whiten: bool = True, sigmoid: bool = True) -> MaskEncoder:
    """An encoder with D = S*S."""
    if name == "pixel":
        return PixelEncoder(mask_size=SIDE)
    options = {"dim": SIDE**2, "mask_size": SIDE, "whiten": whiten, "sigmoid": sigmoid, "clamp": CLAMP}
    if name == "dct":
        return DCTEncoder(**options).eval()
    moments = PixelMoments(SIDE)
    moments.update(np.random.default_rng(0).random((300, SIDE, SIDE)) < 0.4)  # noise has every component
    encoder = PCAEncoder(**options).eval()
    encoder.load_bases([fit_pca(moments, CLAMP if sigmoid else None)])
    return encoder


masks_of_any_kind = arrays(np.bool_, (3, SIDE, SIDE)) | st.sampled_from(
    [
        np.zeros((1, SIDE, SIDE), bool),
        np.ones((1, SIDE, SIDE), bool),
        np.eye(SIDE**2, dtype=bool).reshape(-1, SIDE, SIDE),
    ]
)


@settings(max_examples=100, deadline=None)
@given(masks=masks_of_any_kind, name=st.sampled_from(NAMES), whiten=st.booleans(), sigmoid=st.booleans())
def test_with_all_components_nothing_is_lost(masks: np.ndarray, name: str, whiten: bool, sigmoid: bool) -> None:
    """Of random, empty, full and one-pixel masks; what comes back is the mask, with the clamp for its ends."""
    encoder = complete(name, whiten=whiten, sigmoid=sigmoid)
    truth = torch.from_numpy(masks)
    coeffs = encoder.encode(truth)
    decoded = encoder.decode(coeffs)
    assert coeffs.isfinite().all() and torch.equal(decoded >= 0.5, truth)
    low = {"pixel": torch.tensor(-1.0).sigmoid().item()}.get(name, 0.02 if sigmoid else 0.01)
    torch.testing.assert_close(decoded, torch.where(truth, 1 - low, low), rtol=0, atol=2e-4)
    torch.testing.assert_close(encoder.encode(truth.float()), coeffs)


@settings(max_examples=100, deadline=None)
@given(
    coeffs=arrays(
        np.float32, (2, SIDE**2), elements=st.sampled_from([0.0, 1.0, 1e4, -1e4]) | st.floats(-1e4, 1e4, width=32)
    ),
    name=st.sampled_from(NAMES),
    whiten=st.booleans(),
    sigmoid=st.booleans(),
)
def test_any_coefficients_decode_to_probabilities(coeffs: np.ndarray, name: str, whiten: bool, sigmoid: bool) -> None:
    """And to the logits that float64 gives, which are linear in the coefficients."""
    encoder = complete(name, whiten=whiten, sigmoid=sigmoid)
    pred = torch.from_numpy(coeffs).requires_grad_()
    logits, decoded = encoder.decode_logits(pred), encoder.decode(pred)
    assert decoded.isfinite().all() and (decoded >= 0).all() and (decoded <= 1).all()
    expected = coeffs.astype(np.float64)
    if not isinstance(encoder, PixelEncoder):
        components, deviations, means = (x.double().numpy() for x in encoder.dictionary(None))
        expected = expected * (deviations if whiten else 1) @ components + means
    scale = max(1.0, float(np.abs(expected).max()), float(np.abs(coeffs).max()))
    np.testing.assert_allclose(logits.detach().flatten(1), expected, atol=2e-5 * scale)
    decoded.sum().backward()
    assert pred.grad is not None and pred.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_other_precisions_decode_in_float32(name: str, dtype: torch.dtype) -> None:
    encoder = complete(name)
    coeffs = (torch.randn(5, SIDE**2, generator=torch.Generator().manual_seed(0)) * 1e4).clamp(-6e4, 6e4).to(dtype)
    for found, expected in (
        (encoder.decode_logits(coeffs), encoder.decode_logits(coeffs.float())),
        (encoder.decode(coeffs), encoder.decode(coeffs.float())),
    ):
        assert found.dtype == torch.float32 and torch.equal(found, expected) and found.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_dictionary(dtype: torch.dtype) -> None:
    encoder = complete("pca")
    masks = torch.from_numpy(np.random.default_rng(1).random((4, SIDE, SIDE)) < 0.5)
    with torch.autocast("cpu", dtype):
        coeffs = encoder.encode(masks)
        decoded = encoder.decode(coeffs)
    assert torch.equal(coeffs, encoder.encode(masks)) and torch.equal(decoded, encoder.decode(coeffs))


@pytest.mark.parametrize(
    "clamp", [SigmoidClamp(1e-30, 1e-30), SigmoidClamp(1e-30, 0.499), SigmoidClamp(0.4999, 0.4999)]
)
@pytest.mark.parametrize("training", [True, False])
def test_clamps_at_their_ends(clamp: SigmoidClamp, training: bool) -> None:
    encoder = DCTEncoder(dim=SIDE**2, mask_size=SIDE, clamp=clamp).train(training)
    masks = torch.eye(SIDE).bool()[None].repeat(50, 1, 1)
    coeffs = encoder.encode(masks)
    assert coeffs.isfinite().all() and encoder.decode(coeffs).isfinite().all()
    assert torch.equal(encoder.decode(coeffs) > 0.5, masks)


def test_pixels_that_never_change_have_no_component() -> None:
    """Masks that differ in four pixels: four components of 36, each with a variance that can be divided by."""
    moments = PixelMoments(SIDE)
    masks = np.zeros((16, SIDE, SIDE), bool)
    masks[:, 2, 1:5] = (np.arange(16)[:, None] >> np.arange(4)) & 1
    moments.update(masks)
    for clamp in (CLAMP, None):
        basis = fit_pca(moments, clamp)
        assert basis.dim == 4 and (basis.explained_variance > 0).all()
        encoder = PCAEncoder(dim=4, mask_size=SIDE, sigmoid=clamp is not None, clamp=CLAMP).eval()
        encoder.load_bases([basis])
        other = torch.from_numpy(np.concatenate((masks, ~masks)))
        coeffs = encoder.encode(other)
        assert coeffs.isfinite().all() and encoder.decode(coeffs).isfinite().all()
        assert torch.equal(encoder.decode(coeffs)[:16] > 0.5, torch.from_numpy(masks))


def test_components_without_variance_are_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """They could only divide by zero."""
    rows = np.eye(SIDE**2, dtype=np.float32)[:3]
    variances = np.array([2.0, 1.0, 0.0], np.float32)
    basis = PCABasis(rows, np.zeros(SIDE**2, np.float32), variances, variances / 3)
    save_components(tmp_path / "flat.npz", [basis], {})
    with pytest.raises(ValueError, match="variances must be positive"):
        load_components(tmp_path / "flat.npz")
    encoder = PCAEncoder(dim=3, mask_size=SIDE)
    encoder.load_bases([basis])
    assert not encoder.is_fitted
