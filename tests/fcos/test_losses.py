import math
from typing import get_args

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from meinst_d2.fcos.losses import BoxLossType, centerness_loss, coefficient_loss, focal_loss, iou_loss


def test_focal_loss_worked_example() -> None:
    # One location, two classes, logit 0: p = 1/2. Positive: 1/4 * 1/4 * ln 2; negative: 3/4 * 1/4 * ln 2.
    logits = torch.zeros(1, 2, 1)
    zero = torch.tensor([0])
    assert focal_loss(logits, zero, zero, zero).item() == pytest.approx(0.25 * math.log(2))
    empty = torch.zeros(0, dtype=torch.long)
    assert focal_loss(logits, empty, empty, empty).item() == pytest.approx(2 * 0.75 * 0.25 * math.log(2))


def test_iou_losses_worked_example() -> None:
    # Boxes 4 x 4 and 2 x 2 around one location: I = 4, U = 16, C = 16; IoU = 5 / 17.
    pred, gt = torch.full((1, 4), 2.0), torch.full((1, 4), 1.0)
    assert iou_loss(pred, gt, "linear_iou").item() == pytest.approx(1 - 5 / 17)
    assert iou_loss(pred, gt, "iou").item() == pytest.approx(math.log(17 / 5))
    assert iou_loss(pred, gt, "giou").item() == pytest.approx(1 - 5 / 17)
    # Crossing boxes: I = 2 * 2, U = 2 * 2 * 4 - 4, C = 4 * 4.
    pred, gt = torch.tensor([[2.0, 1, 2, 1]]), torch.tensor([[1.0, 2, 1, 2]])
    assert iou_loss(pred, gt, "giou").item() == pytest.approx(1 - (5 / 13 - 4 / 16))


def test_giou_is_torchvisions_where_the_smoothing_vanishes() -> None:
    torch.manual_seed(0)
    pred, gt = torch.rand(100, 4) * 1e4 + 100, torch.rand(100, 4) * 1e4 + 100
    corners = lambda ltrb: torch.cat((-ltrb[:, :2], ltrb[:, 2:]), 1)  # noqa: E731
    expected = generalized_box_iou_loss(corners(pred), corners(gt))
    torch.testing.assert_close(iou_loss(pred, gt), expected, rtol=1e-4, atol=1e-5)


def test_centerness_and_coefficient_losses_worked_examples() -> None:
    assert centerness_loss(torch.zeros(2), torch.tensor([0.5, 1.0])).item() == pytest.approx(2 * math.log(2))
    distance = coefficient_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
    assert distance.tolist() == [5]


def test_nothing_is_a_differentiable_zero() -> None:
    pred, logits, coeffs = (torch.zeros(0, n, requires_grad=True) for n in (4, 1, 7))
    total = iou_loss(pred, torch.zeros(0, 4)).sum() + centerness_loss(logits[:, 0], torch.zeros(0))
    total = total + coefficient_loss(coeffs, torch.zeros(0, 7)).sum()
    assert total.item() == 0
    total.backward()
    assert pred.grad is not None


def test_gradients_are_the_numerical_ones() -> None:
    torch.manual_seed(1)
    pred = (torch.rand(3, 4, dtype=torch.double) * 5 + 0.5).requires_grad_()
    gt = torch.rand(3, 4, dtype=torch.double) * 5 + 0.5
    for loss_type in get_args(BoxLossType):
        assert torch.autograd.gradcheck(lambda x, kind=loss_type: iou_loss(x, gt, kind), pred)
