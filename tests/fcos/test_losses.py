import math
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_area, generalized_box_iou_loss

from meinst_d2.fcos.losses import (
    BoxLossType,
    CoefficientLossType,
    centerness_loss,
    coefficient_loss,
    focal_loss,
    iou_loss,
    pixel_loss,
)
from meinst_d2.modeling.criterion import MEInstCriterion


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
    assert coefficient_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])).tolist() == [5]


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


HALVES = [torch.float16, torch.bfloat16]
logit = st.sampled_from([0.0, 1e4, -1e4, 17.0, -17.0, 90.0, -90.0]) | st.floats(-1e4, 1e4, width=32)
extent = st.sampled_from([0.0, 1.0, 1e-6, 20_000.0]) | st.floats(0, 20_000, width=32)
boxes = st.lists(st.tuples(*[extent] * 8), min_size=1, max_size=8)


def gradient(loss: Tensor, *leaves: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), leaves)])


def softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x), without torch's shortcut and without overflow."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def exact_focal(logit_: float, is_positive: bool, alpha: float, gamma: float) -> float:
    """-alpha (1 - p)^gamma ln p of the true class, from ln(1 + e^x), which is right for every x."""
    x = -logit_ if is_positive else logit_
    cost, confidence = (softplus(torch.tensor(v, dtype=torch.float64)).item() for v in (x, -x))
    return (alpha if is_positive else 1 - alpha) * cost * math.exp(-gamma * confidence)


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.tuples(logit, st.booleans()), min_size=1, max_size=12),
    gamma=st.sampled_from([0.0, 1.0, 1.5, 2.0, 5.0]),
    alpha=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_focal_loss(logits: list[tuple[float, bool]], gamma: float, alpha: float) -> None:
    values = torch.tensor([x for x, _ in logits])[None, None].requires_grad_()
    at = torch.tensor([i for i, (_, is_positive) in enumerate(logits) if is_positive], dtype=torch.int64)
    zero = torch.zeros_like(at)
    loss = focal_loss(values, zero, zero, at, alpha=alpha, gamma=gamma)
    expected = sum(exact_focal(x, is_positive, alpha, gamma) for x, is_positive in logits)
    # 1 - p is rounded to float32's 6e-8, so a term where p is next to 1 is known to that times gamma.
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=2e-6) and gradient(loss, values).isfinite().all()
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    moved = focal_loss(values[..., order], zero, zero, order.argsort()[at], alpha=alpha, gamma=gamma)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.99])
def test_an_exponent_whose_gradient_is_no_number_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"FOCAL_LOSS_GAMMA {gamma} .*choose 0, or 1 or more"):
        MEInstCriterion(focal_gamma=gamma)


def exact_box_loss(pred: Tensor, gt: Tensor, loss_type: str) -> Tensor:
    """From the corners of boxes around (0, 0)."""
    a, b = (torch.cat((-ltrb[:, :2], ltrb[:, 2:]), 1) for ltrb in (pred, gt))
    sides = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    around = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    intersection, enclosing = sides.prod(1), around.prod(1)
    union = box_area(a) + box_area(b) - intersection
    iou = (intersection + 1) / (union + 1)
    penalty = (enclosing - union) / enclosing.clamp(min=1e-7)
    return {"giou": 1 - iou + penalty, "iou": -iou.log(), "linear_iou": 1 - iou}[loss_type]


@settings(max_examples=150, deadline=None)
@given(rows=boxes, loss_type=st.sampled_from(get_args(BoxLossType)))
def test_box_losses(rows: list[tuple[float, ...]], loss_type: str) -> None:
    pred, gt = torch.tensor(rows).split(4, 1)
    pred.requires_grad_()
    loss = iou_loss(pred, gt, loss_type)
    exact = exact_box_loss(pred.detach().double(), gt.double(), loss_type)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    assert gradient(loss, pred).isfinite().all()
    assert (loss >= -1e-5).all() and (loss_type == "iou" or (loss <= 2 + 1e-5).all())
    torch.testing.assert_close(iou_loss(gt, pred, loss_type), loss)  # symmetric
    mirrored = [2, 1, 0, 3]
    torch.testing.assert_close(iou_loss(pred[:, mirrored], gt[:, mirrored], loss_type), loss)
    torch.testing.assert_close(iou_loss(pred.flip(0), gt.flip(0), loss_type), loss.flip(0), rtol=0, atol=0)


@settings(max_examples=100, deadline=None)
@given(
    gt=st.tuples(*[st.floats(0.5, 20_000, width=32)] * 4),
    grow=st.floats(1.01, 3),
    loss_type=st.sampled_from(get_args(BoxLossType)),
)
def test_a_box_that_is_further_off_costs_more(gt: tuple[float, ...], grow: float, loss_type: str) -> None:
    target = torch.tensor([gt], dtype=torch.float64)
    near, far = iou_loss(target * grow, target, loss_type), iou_loss(target * grow**2, target, loss_type)
    assert 0 < near.item() < far.item()
    near, far = iou_loss(target / grow, target, loss_type), iou_loss(target / grow**2, target, loss_type)
    assert 0 < near.item() < far.item()


@pytest.mark.parametrize("loss_type", get_args(BoxLossType))
def test_equal_boxes_with_and_without_area_cost_nothing(loss_type: str) -> None:
    pred = torch.tensor([[0.0, 0, 0, 0], [3, 0, 4, 0], [0, 5, 0, 0], [2.5, 30, 0.25, 7]], requires_grad=True)
    loss = iou_loss(pred, pred.detach(), loss_type)
    assert loss.tolist() == [0, 0, 0, 0] and gradient(loss, pred).isfinite().all()


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(logit, st.floats(0, 1, width=32)), min_size=1, max_size=12))
@example(rows=[(-340.0, 1.1920928955078125e-07)])
def test_centerness_loss(rows: list[tuple[float, float]]) -> None:
    logits, target = torch.tensor(rows).unbind(1)
    logits.requires_grad_()
    loss = centerness_loss(logits, target)
    p = logits.double()
    exact = (softplus(p) - p * target.double()).sum()  # -t ln p - (1 - t) ln(1 - p)
    rounding = torch.finfo(torch.float32).eps * p.abs().sum().item()  # of terms as large as the logits
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5, abs=max(1e-5, rounding))
    torch.testing.assert_close(gradient(loss, logits), logits.detach().sigmoid() - target, rtol=1e-4, atol=1e-6)


coefficient = st.sampled_from([0.0, 1e4, -1e4, 1.0]) | st.floats(-1e4, 1e4, width=32)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(*[coefficient] * 6), min_size=1, max_size=6),
    loss_type=st.sampled_from(get_args(CoefficientLossType)),
)
def test_coefficient_losses(rows: list[tuple[float, ...]], loss_type: str) -> None:
    pred, target = torch.tensor(rows).split(3, 1)
    pred.requires_grad_()
    loss = coefficient_loss(pred, target, loss_type)
    error = (pred - target).double().detach()
    if loss_type == "cosine":
        lengths = [x.detach().double().norm(dim=1).clamp(min=1e-8) for x in (pred, target)]
        exact = 1 - (pred.detach().double() * target.double()).sum(1) / lengths[0] / lengths[1]
    else:
        terms = {
            "l2": error.square(),
            "l1": error.abs(),
            "smooth_l1": torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5),
        }
        exact = terms[loss_type].sum(1)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)
    assert gradient(loss, pred).isfinite().all()
    torch.testing.assert_close(coefficient_loss(target, pred, loss_type), loss)
    assert coefficient_loss(pred.flip(1), target.flip(1), loss_type).tolist() == pytest.approx(
        loss.tolist(), rel=1e-5, abs=1e-5
    )


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(logit, logit, st.booleans(), st.booleans()), min_size=1, max_size=8))
def test_pixel_loss(rows: list[tuple[float, float, bool, bool]]) -> None:
    logits = torch.tensor([row[:2] for row in rows], requires_grad=True)
    masks = torch.tensor([row[2:] for row in rows])
    loss = pixel_loss(logits, masks)
    signed = torch.where(masks, -logits, logits).detach().double()
    torch.testing.assert_close(loss.double(), softplus(signed).sum(1), rtol=1e-5, atol=1e-5)
    assert gradient(loss, logits).isfinite().all()


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """1e4 squared, and the area of a box of 300 strides, are more than float16 holds."""
    generator = torch.Generator().manual_seed(0)
    wide = (torch.randn(40, 28, generator=generator) * 1e4).clamp(-1e4, 1e4).to(dtype).requires_grad_()
    other = torch.randn(40, 28, generator=generator).mul(300).to(dtype)
    zero = torch.zeros(40, 28, dtype=dtype)
    at = torch.tensor([0, 3])
    first = torch.zeros_like(at)

    def losses(x: Tensor, y: Tensor) -> list[Tensor]:
        found = [focal_loss(x.T[None], first, at, at), centerness_loss(x[:, 0], y[:, 0].abs() / 2000)]
        found += [pixel_loss(x, y > 0)]
        found += [iou_loss(x[:, :4].abs() / 30, y[:, :4].abs(), kind) for kind in get_args(BoxLossType)]
        return found + [coefficient_loss(x, z, kind) for kind in get_args(CoefficientLossType) for z in (y, 0 * y)]

    for found, expected in zip(losses(wide, other), losses(wide.float(), other.float()), strict=True):
        assert found.dtype == torch.float32 and found.isfinite().all()
        tolerance = 1e-2 if dtype == torch.bfloat16 else 2e-3  # dividing the inputs rounds them again
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert gradient(found, wide).isfinite().all()
    for kind in get_args(CoefficientLossType):
        assert coefficient_loss(zero, zero, kind).isfinite().all()
