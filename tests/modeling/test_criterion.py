import math
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meinst_d2.encoding import ClassPCAEncoder, MaskEncoder, PCAEncoder, PixelEncoder, fit_pca
from meinst_d2.encoding.clamp import SigmoidClamp
from meinst_d2.fcos.assign import Positives, centerness
from meinst_d2.modeling.criterion import MEInstCriterion
from meinst_d2.modeling.head import HeadOutput
from meinst_d2.modeling.mask_loss import MaskLoss, MaskRepresentation, MaskTargets
from tests.conftest import blob_masks, moments_of


class Given(MaskEncoder):
    """Encodes every mask as it was told to."""

    def __init__(self, coeffs: list[list[float]]) -> None:
        super().__init__()
        self.coeffs = torch.tensor(coeffs).reshape(-1, 2)

    def encode(self, masks: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        return self.coeffs

    def decode_logits(self, coeffs: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError

    decode = decode_logits

    def stds(self, classes: torch.Tensor | None = None) -> torch.Tensor:
        raise NotImplementedError


def masks_as(coeffs: list[list[float]]) -> tuple[torch.Tensor, MaskEncoder]:
    """Masks, and an encoder that gives them these coefficients."""
    return torch.zeros(len(coeffs), 4, 4, dtype=torch.bool), Given(coeffs)


def output(num_images: int = 1, dim: int | None = 2) -> HeadOutput:
    """Two levels of 2 x 2 and 1 x 1 locations, three classes, all zero."""

    def maps(channels: int) -> list[torch.Tensor]:
        return [torch.zeros(num_images, channels, n, n, requires_grad=True) for n in (2, 1)]

    return HeadOutput(maps(3), maps(4), maps(1), None if dim is None else maps(dim))


def positives(image: list[int], location: list[int], gt: list[int], ltrb: list[list[float]]) -> Positives:
    distances = torch.tensor(ltrb).reshape(-1, 4)
    return Positives(*(torch.tensor(x).long() for x in (image, location, gt)), distances, centerness(distances))


def test_worked_example() -> None:
    # One positive at the coarse level (location 4), centerness sqrt(1/3 * 1) = 0.577.
    found = positives([0], [4], [1], [[1, 1, 3, 1]])
    c = (1 / 3) ** 0.5
    losses = MEInstCriterion()(output(), found, torch.tensor([0, 2]), *masks_as([[9.0, 9.0], [3.0, 4.0]]))
    # 15 logits of zero, one of them positive.
    assert losses["loss_cls"].item() == pytest.approx((0.25 + 14 * 0.75) / 4 * math.log(2))
    # Empty prediction: I = 0, U = C = 8; IoU = 1 / 9; weight and normaliser cancel.
    assert losses["loss_box"].item() == pytest.approx(1 - 1 / 9)
    assert losses["loss_centerness"].item() == pytest.approx(math.log(2))
    # Distance 25, weighted by c, over max(c * 2, 1).
    assert losses["loss_mask"].item() == pytest.approx(25 * c / (2 * c))


def test_the_mask_normaliser_is_at_least_one() -> None:
    found = positives([0], [0], [0], [[1, 1, 99, 1]])
    losses = MEInstCriterion()(output(), found, torch.tensor([0]), *masks_as([[3.0, 4.0]]))
    assert losses["loss_mask"].item() == pytest.approx(25 * (1 / 99) ** 0.5)


def test_every_loss_has_its_factor() -> None:
    found = positives([0], [4], [0], [[1, 1, 3, 1]])
    arguments = (output(), found, torch.tensor([0]), *masks_as([[3.0, 4.0]]))
    plain = MEInstCriterion()(*arguments)
    weighted = MEInstCriterion(weights={"cls": 2, "box": 3, "centerness": 5, "mask": 7})(*arguments)
    for name, factor in (("loss_cls", 2), ("loss_box", 3), ("loss_centerness", 5), ("loss_mask", 7)):
        assert weighted[name].item() == pytest.approx(factor * plain[name].item())


def test_without_positives_every_other_loss_is_an_attached_zero() -> None:
    predictions = output()
    losses = MEInstCriterion()(predictions, positives([], [], [], []), torch.zeros(0).long(), *masks_as([]))
    assert losses["loss_cls"] > 0
    for name in ("loss_box", "loss_centerness", "loss_mask"):
        assert losses[name].item() == 0
    sum(losses.values()).backward()
    assert predictions.mask_coeffs is not None
    for maps in (predictions.box_ltrb, predictions.centerness, predictions.mask_coeffs):
        assert all(x.grad is not None and not x.grad.any() for x in maps)


def test_two_instances_with_one_box_keep_their_own_targets() -> None:
    """The published lookup by box gives both the mask of the first."""
    found = positives([0, 0], [0, 1], [0, 1], [[1, 1, 1, 1], [1, 1, 1, 1]])
    predictions = output()
    with torch.no_grad():
        assert predictions.mask_coeffs is not None
        predictions.mask_coeffs[0][0, :, 0] = torch.tensor([[5.0, -5.0], [0.0, 0.0]])
    losses = MEInstCriterion()(predictions, found, torch.tensor([0, 0]), *masks_as([[5.0, 0.0], [-5.0, 0.0]]))
    assert losses["loss_mask"].item() == 0


MASKS = blob_masks(np.random.default_rng(1), 200, 8)
CLAMP = SigmoidClamp(0.02, 0.02)


def pca_encoder(dim: int = 4) -> PCAEncoder:
    encoder = PCAEncoder(dim=dim, mask_size=8, clamp=CLAMP)
    encoder.load_bases([fit_pca(moments_of(MASKS), CLAMP).truncated(dim)])
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
    expected = F.binary_cross_entropy(encoder.decode(pred.detach()), torch.from_numpy(MASKS[[0, 0, 2]]).float())
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
    moments = moments_of(MASKS[:100]), moments_of(MASKS[100:, ::-1])
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
