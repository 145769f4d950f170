"""What all encoders promise, and what each adds."""

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from meinst_d2.encoding import (
    MASK_ENCODER_REGISTRY,
    ClassPCAEncoder,
    DCTEncoder,
    MaskEncoder,
    PCAEncoder,
    PixelEncoder,
    PixelMoments,
    SigmoidClamp,
    fit_pca,
)
from meinst_d2.encoding.dct import dct_rows, low_frequencies
from tests.conftest import blob_masks

FIXED = SigmoidClamp(0.02, 0.02)
MASKS = blob_masks(np.random.default_rng(0), 400, 12)
CLASSES = torch.arange(400) % 2


def basis(masks: np.ndarray, dim: int, sigmoid: bool = True):  # type: ignore[no-untyped-def]
    moments = PixelMoments(masks.shape[1])
    moments.update(masks)
    return fit_pca(moments, FIXED if sigmoid else None).truncated(dim)


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
    iou = (found & masks).sum((1, 2)) / (found | masks).sum((1, 2))
    assert iou.mean() > 0.85


@pytest.mark.parametrize("whiten", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_deviations_say_how_far_a_coefficient_moves_the_logits(name: str, whiten: bool) -> None:
    encoder = make(name, whiten=whiten)
    classes = torch.tensor([1])
    origin = encoder.decode_logits(torch.zeros(1, encoder.dim), classes)
    deviations = encoder.deviations(classes).reshape(-1)
    for d in (0, 7):
        unit = torch.zeros(1, encoder.dim)
        unit[0, d] = 1
        moved = encoder.decode_logits(unit, classes) - origin
        assert moved.norm().item() == pytest.approx(deviations[d].item(), rel=1e-4)


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
    frequencies = low_frequencies(6, 8)
    assert frequencies.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [2, 0]]
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
    with pytest.raises(ValueError, match="components for 1 classes, ClassPCAEncoder needs 2: .*--class-specific"):
        ClassPCAEncoder(num_classes=2, dim=40, mask_size=12).load_bases([basis(MASKS, 40)])
    with pytest.raises(ValueError, match="components for 2 classes, PCAEncoder needs 1: .*without --class-specific"):
        PCAEncoder(dim=40, mask_size=12).load_bases([basis(MASKS, 40)] * 2)
    with pytest.raises(ValueError, match="pass classes"):
        make("ClassPCAEncoder").encode(torch.from_numpy(MASKS[:2]))
    with pytest.raises(ValueError, match="D = 145 coefficients of 12 x 12 pixels: choose 1 to 144"):
        DCTEncoder(dim=145, mask_size=12)
