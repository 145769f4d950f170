import math

import pytest
import torch

from meinst_d2.encoding import MaskEncoder
from meinst_d2.fcos.assign import Positives, centerness
from meinst_d2.modeling.criterion import MEInstCriterion
from meinst_d2.modeling.head import HeadOutput


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

    def deviations(self, classes: torch.Tensor | None = None) -> torch.Tensor:
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
    return Positives(
        torch.tensor(image).long(),
        torch.tensor(location).long(),
        torch.tensor(gt).long(),
        distances,
        centerness(distances),
    )


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
