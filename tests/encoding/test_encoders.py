"""What all encoders promise, and what each adds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.fft import dctn

from meinst_d2.encoding import (
    MASK_ENCODER_REGISTRY,
    ClassPCAEncoder,
    DCTEncoder,
    MaskEncoder,
    PCABasis,
    PCAEncoder,
    PixelEncoder,
    SigmoidClamp,
    fit_pca,
    load_components,
    save_components,
)
from meinst_d2.encoding.dct import dct_rows, low_frequencies
from tests.conftest import blob_masks, moments_of

FIXED = SigmoidClamp(0.02, 0.02)
MASKS = blob_masks(np.random.default_rng(0), 400, 12)
CLASSES = torch.arange(400) % 2


def basis(masks: np.ndarray, dim: int, sigmoid: bool = True):  # type: ignore[no-untyped-def]
    return fit_pca(moments_of(masks), FIXED if sigmoid else None).truncated(dim)


def make(name: str, **options: object) -> MaskEncoder:
    sigmoid = bool(options.get("sigmoid", True))
    if name == "PixelEncoder":
        return PixelEncoder(mask_size=12)
    options = {"dim": 40, "mask_size": 12, "clamp": FIXED, **options}
    if name == "ClassPCAEncoder":
        encoder = ClassPCAEncoder(num_classes=2, **options)
        encoder.load_bases([basis(MASKS[0::2], 40, sigmoid), basis(MASKS[1::2], 40, sigmoid)])
        return encoder
    encoder = MASK_ENCODER_REGISTRY.get(name)(**options)
    if encoder.needs_components:
        encoder.load_bases([basis(MASKS, 40, sigmoid)])
    return encoder


NAMES = ["PCAEncoder", "ClassPCAEncoder", "DCTEncoder", "PixelEncoder"]


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_decoded_code_is_close_to_its_mask(name: str, sigmoid: bool, whiten: bool) -> None:
    encoder = make(name, sigmoid=sigmoid, whiten=whiten)
    masks, classes = torch.from_numpy(MASKS[:50]), CLASSES[:50]
    coeffs = encoder.encode(masks, classes)
    assert encoder.is_fitted and coeffs.shape == (50, encoder.dim) and coeffs.dtype == torch.float32
    decoded = encoder.decode(coeffs.requires_grad_(), classes)
    decoded.sum().backward()
    assert coeffs.grad is not None and coeffs.grad.abs().sum() > 0
    assert decoded.shape == (50, 12, 12) and decoded.min() > 0 and decoded.max() < 1
    found = decoded >= 0.5
    assert ((found & masks).sum((1, 2)) / (found | masks).sum((1, 2))).mean() > 0.85


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_stds_say_how_far_a_coefficient_moves_the_logits(name: str, whiten: bool) -> None:
    encoder = make(name, whiten=whiten)
    classes = torch.tensor([1])
    origin = encoder.decode_logits(torch.zeros(1, encoder.dim), classes)
    stds = encoder.stds(classes).reshape(-1)
    for d in (0, 7):
        unit = torch.zeros(1, encoder.dim)
        unit[0, d] = 1
        moved = encoder.decode_logits(unit, classes) - origin
        assert moved.norm().item() == pytest.approx(stds[d].item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_no_masks(name: str) -> None:
    encoder, none = make(name), torch.zeros(0, dtype=torch.int64)
    assert encoder.encode(torch.zeros(0, 12, 12, dtype=torch.bool), none).shape == (0, encoder.dim)
    assert encoder.decode(torch.zeros(0, encoder.dim), none).shape == (0, 12, 12)


@pytest.mark.parametrize("name", ["PCAEncoder", "ClassPCAEncoder", "DCTEncoder"])
def test_what_an_encoder_knows_travels_in_its_state_dict(name: str) -> None:
    encoder, classes = make(name), CLASSES[:5]
    options = {"dim": 40, "mask_size": 12, "clamp": FIXED}
    fresh = MASK_ENCODER_REGISTRY.get(name)(**options, **({"num_classes": 2} if encoder.class_specific else {}))
    assert fresh.is_fitted == (name == "DCTEncoder")
    fresh.load_state_dict(encoder.state_dict())
    assert fresh.is_fitted
    assert name == "DCTEncoder" or set(fresh.state_dict()) == {"components", "explained_variances", "means"}
    masks = torch.from_numpy(MASKS[:5])
    assert torch.equal(fresh.encode(masks, classes), encoder.encode(masks, classes))


def test_the_frequencies_are_the_lowest_and_the_rows_are_scipys() -> None:
    assert low_frequencies(6, 8).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [2, 0]]
    mask = MASKS[0].astype(float)
    every = low_frequencies(144, 12)
    coefficients = dct_rows(every, 12) @ mask.ravel()
    np.testing.assert_allclose(coefficients, dctn(mask, norm="ortho")[every[:, 0], every[:, 1]], atol=1e-12)


def test_dct_variances_add_up_to_the_power_of_a_mask() -> None:
    encoder = DCTEncoder(dim=144, mask_size=12, clamp=FIXED)
    magnitude = FIXED.logit_moments()[0]
    assert encoder.explained_variances.sum().item() == pytest.approx((magnitude * 12) ** 2, rel=1e-5)
    assert (encoder.explained_variances.diff() <= 0).all()


def test_each_class_has_its_own_dictionary() -> None:
    encoder = make("ClassPCAEncoder")
    first = PCAEncoder(dim=40, mask_size=12, clamp=FIXED)
    first.load_bases([basis(MASKS[1::2], 40)])
    masks = torch.from_numpy(MASKS[:3])
    of_one = encoder.encode(masks, torch.ones(3).long())
    torch.testing.assert_close(of_one, first.encode(masks), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.decode(of_one, torch.ones(3).long()), first.decode(of_one), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(of_one, encoder.encode(masks, torch.zeros(3).long()), atol=0.1)


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match="of dictionaries is 1, ClassPCAEncoder needs 2: .*with meinst fit --class-"):
        ClassPCAEncoder(num_classes=2, dim=40, mask_size=12).load_bases([basis(MASKS, 40)])
    with pytest.raises(ValueError, match="of dictionaries is 2, PCAEncoder needs 1: .*without --class-specific"):
        PCAEncoder(dim=40, mask_size=12).load_bases([basis(MASKS, 40)] * 2)
    with pytest.raises(ValueError, match="pass classes"):
        make("ClassPCAEncoder").encode(torch.from_numpy(MASKS[:2]))
    with pytest.raises(ValueError, match="D = 145 coefficients of 12 x 12 pixels: choose 1 to 144"):
        DCTEncoder(dim=145, mask_size=12)


SIDE = 6
CLAMP = SigmoidClamp(0.02, 0.02)
COMPLETE = ["pca", "dct", "pixel"]


def complete(name: str, *, whiten: bool = True, sigmoid: bool = True) -> MaskEncoder:
    """An encoder with D = S*S."""
    if name == "pixel":
        return PixelEncoder(mask_size=SIDE)
    options = {"dim": SIDE**2, "mask_size": SIDE, "whiten": whiten, "sigmoid": sigmoid, "clamp": CLAMP}
    if name == "dct":
        return DCTEncoder(**options).eval()
    moments = moments_of(np.random.default_rng(0).random((300, SIDE, SIDE)) < 0.4)  # noise has every component
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
@given(masks=masks_of_any_kind, name=st.sampled_from(COMPLETE), whiten=st.booleans(), sigmoid=st.booleans())
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
    name=st.sampled_from(COMPLETE),
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
        components, stds, means = (x.double().numpy() for x in encoder.dictionary(None))
        expected = expected * (stds if whiten else 1) @ components + means
    scale = max(1.0, float(np.abs(expected).max()), float(np.abs(coeffs).max()))
    np.testing.assert_allclose(logits.detach().flatten(1), expected, atol=2e-5 * scale)
    decoded.sum().backward()
    assert pred.grad is not None and pred.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", COMPLETE)
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
    masks = np.zeros((16, SIDE, SIDE), bool)
    masks[:, 2, 1:5] = (np.arange(16)[:, None] >> np.arange(4)) & 1
    moments = moments_of(masks)
    for clamp in (CLAMP, None):
        basis = fit_pca(moments, clamp)
        assert basis.dim == 4 and (basis.explained_variance > 0).all()
        encoder = PCAEncoder(dim=4, mask_size=SIDE, sigmoid=clamp is not None, clamp=CLAMP).eval()
        encoder.load_bases([basis])
        coeffs = encoder.encode(torch.from_numpy(np.concatenate((masks, ~masks))))
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
