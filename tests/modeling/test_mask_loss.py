import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meinst_d2.encoding import ClassPCAEncoder, MaskEncoder, PCAEncoder, PixelEncoder, PixelMoments, fit_pca
from meinst_d2.encoding.clamp import SigmoidClamp
from meinst_d2.modeling.mask_loss import MaskLoss, MaskRepresentation, MaskTargets
from tests.conftest import blob_masks

MASKS = blob_masks(np.random.default_rng(1), 200, 8)
CLAMP = SigmoidClamp(0.02, 0.02)


def pca_encoder(dim: int = 4) -> PCAEncoder:
    moments = PixelMoments(8)
    moments.update(MASKS)
    encoder = PCAEncoder(dim=dim, mask_size=8, clamp=CLAMP)
    encoder.load_bases([fit_pca(moments, CLAMP).truncated(dim)])
    return encoder


def targets(gt_idx: list[int]) -> MaskTargets:
    return MaskTargets(torch.from_numpy(MASKS[:3]), torch.tensor([0, 1, 1]), torch.tensor(gt_idx).long())


def loss(pred: torch.Tensor, gt_idx: list[int], encoder: MaskEncoder, **options: object) -> torch.Tensor:
    weight = torch.ones(len(gt_idx))
    return MaskLoss(**options)(pred, targets(gt_idx), encoder, weight, weight.sum().clamp(min=1e-6))


def test_explicit_l2_is_the_mean_squared_error_of_coefficients() -> None:
    encoder = pca_encoder()
    coeffs = encoder.encode(torch.from_numpy(MASKS[:3]))
    pred = torch.randn(2, 4)
    assert loss(pred, [2, 0], encoder).item() == pytest.approx(F.mse_loss(pred, coeffs[[2, 0]]).item(), rel=1e-5)
    assert loss(coeffs[[1]], [1], encoder).item() == 0


@pytest.mark.parametrize(("loss_type", "expected"), [("l1", 3 / 4), ("smooth_l1", 1.625 / 4), ("l2", 3.5 / 4)])
def test_coefficient_losses_are_means_over_coefficients(loss_type: str, expected: float) -> None:
    """Errors 0.5, 0, 1.5 and 1: with smooth l1 0.125, 0, 1 and 0.5."""
    encoder = pca_encoder()
    pred = encoder.encode(torch.from_numpy(MASKS[:1])) + torch.tensor([[0.5, 0.0, -1.5, 1.0]])
    assert loss(pred, [0], encoder, loss_type=loss_type).item() == pytest.approx(expected, rel=1e-4)


def test_cosine_looks_at_the_direction_only() -> None:
    encoder = pca_encoder()
    coeffs = encoder.encode(torch.from_numpy(MASKS[:1]))
    assert loss(3 * coeffs, [0], encoder, loss_type="cosine").item() == pytest.approx(0, abs=1e-6)
    assert loss(-coeffs, [0], encoder, loss_type="cosine").item() == pytest.approx(2)


def test_weighted_by_deviation_the_loss_is_the_error_of_the_logits() -> None:
    encoder = pca_encoder()
    pred = torch.randn(1, 4)
    coeffs = encoder.encode(torch.from_numpy(MASKS[:1]))
    in_logits = (encoder.decode_logits(pred) - encoder.decode_logits(coeffs)).square().sum()
    total_variance = encoder.explained_variances.sum()
    weighted = loss(pred, [0], encoder, weights="deviation")
    assert weighted.item() == pytest.approx((in_logits / total_variance).item(), rel=1e-4)


def test_unwhitened_coefficients_are_in_logits_already() -> None:
    encoder = pca_encoder()
    encoder.whiten = False
    pred = torch.randn(1, 4)
    assert loss(pred, [0], encoder, weights="deviation").item() == loss(pred, [0], encoder).item()


def test_implicit_is_the_cross_entropy_of_the_decoded_pixels() -> None:
    encoder = pca_encoder()
    pred = torch.randn(3, 4, requires_grad=True)
    found = loss(pred, [0, 0, 2], encoder, representation="implicit")
    probabilities = encoder.decode(pred.detach())
    expected = F.binary_cross_entropy(probabilities, torch.from_numpy(MASKS[[0, 0, 2]]).float())
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    found.backward()
    assert pred.grad is not None and pred.grad.abs().sum() > 0
    assert encoder.components.grad is None


def test_without_encoding_the_coefficients_are_pixel_logits() -> None:
    found = loss(torch.zeros(1, 64), [1], PixelEncoder(mask_size=8), representation="none")
    assert found.item() == pytest.approx(math.log(2))


def test_a_location_of_weight_one_half_counts_half() -> None:
    encoder = pca_encoder()
    pred = encoder.encode(torch.from_numpy(MASKS[:2])) + torch.tensor([[1.0], [2.0]])
    weight = torch.tensor([1.0, 0.5])
    found = MaskLoss()(pred, targets([0, 1]), encoder, weight, weight.sum())
    assert found.item() == pytest.approx((1 + 0.5 * 4) / 1.5, rel=1e-4)


def test_class_specific_targets_and_decoders_follow_the_true_class() -> None:
    moments = [PixelMoments(8), PixelMoments(8)]
    moments[0].update(MASKS[:100])
    moments[1].update(MASKS[100:, ::-1])
    encoder = ClassPCAEncoder(num_classes=2, dim=4, mask_size=8, clamp=CLAMP)
    encoder.load_bases([fit_pca(m, CLAMP).truncated(4) for m in moments])
    masks, classes = torch.from_numpy(MASKS[:3]), torch.tensor([0, 1, 1])
    pred = encoder.encode(masks, classes)[[2, 0]]
    for weights in ("uniform", "deviation"):
        assert loss(pred, [2, 0], encoder, weights=weights).item() == pytest.approx(0, abs=1e-10)
    assert loss(pred, [0, 2], encoder).item() > 0.1
    implicit = loss(pred, [2, 0], encoder, representation="implicit")
    expected = F.binary_cross_entropy(encoder.decode(pred, torch.tensor([1, 0])), masks[[2, 0]].float())
    assert implicit.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("representation", get_args(MaskRepresentation))
def test_no_locations_cost_an_attached_zero(representation: str) -> None:
    encoder = PixelEncoder(mask_size=8) if representation == "none" else pca_encoder()
    pred = torch.zeros(0, encoder.dim, requires_grad=True)
    found = loss(pred, [], encoder, representation=representation)
    assert found.item() == 0
    found.backward()
    assert pred.grad is not None
