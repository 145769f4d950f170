"""Losses of dense detection, as functions of tensors. Empty input gives a differentiable zero.

Half precision is widened to float32 first: it holds neither the area of a large box nor the sum over an image.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

BoxLossType = Literal["giou", "iou", "linear_iou"]
CoefficientLossType = Literal["l2", "l1", "smooth_l1", "cosine"]


def focal_loss(
    logits: Tensor,
    image_idx: Tensor,
    class_idx: Tensor,
    location_idx: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Sum of the sigmoid focal loss over all locations and classes (RetinaNet, arXiv 1708.02002).

    Args:
        logits: (N, K, R).
        image_idx, class_idx, location_idx: (P,) int64, the pairs whose target is 1; all others are 0.
        alpha: weight of the positive pairs; the negative ones weigh 1 - alpha.
        gamma: focusing exponent, 0 or at least 1: between them the gradient of a saturated logit is not a number.

    Returns:
        () float32.
    """
    logits = _widened(logits)
    targets = torch.zeros_like(logits)
    targets[image_idx, class_idx, location_idx] = 1
    loss: Tensor = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma, reduction="sum")
    return loss


def iou_loss(pred_ltrb: Tensor, gt_ltrb: Tensor, loss_type: BoxLossType = "giou") -> Tensor:
    """Loss of boxes that share a location, by their overlap.

    The intersection over union is taken as (I + 1) / (U + 1), in squares of the distances' unit, as the published
    models were trained; the generalised term is (C - U) / max(C, 1e-7).

    Args:
        pred_ltrb, gt_ltrb: (P, 4) non-negative distances in the same unit. Two boxes without area cost nothing.
        loss_type: "giou" (1 - GIoU), "iou" (-ln IoU) or "linear_iou" (1 - IoU).

    Returns:
        (P,), not reduced.
    """
    pred_ltrb, gt_ltrb = _widened(pred_ltrb), _widened(gt_ltrb)
    intersection = _area(torch.minimum(pred_ltrb, gt_ltrb))
    union = _area(pred_ltrb) + _area(gt_ltrb) - intersection
    iou = (intersection + 1) / (union + 1)
    if loss_type == "iou":
        return -iou.log()
    if loss_type == "linear_iou":
        return 1 - iou
    enclosing = _area(torch.maximum(pred_ltrb, gt_ltrb))
    return 1 - (iou - (enclosing - union) / enclosing.clamp(min=1e-7))


def _area(ltrb: Tensor) -> Tensor:
    return (ltrb[..., 0] + ltrb[..., 2]) * (ltrb[..., 1] + ltrb[..., 3])


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def centerness_loss(logits: Tensor, centerness: Tensor) -> Tensor:
    """Sum of the binary cross-entropy of centerness logits.

    Args:
        logits: (P,).
        centerness: (P,) targets in [0, 1].

    Returns:
        ().
    """
    return F.binary_cross_entropy_with_logits(_widened(logits), _widened(centerness), reduction="sum")


def coefficient_loss(pred: Tensor, target: Tensor, loss_type: CoefficientLossType = "l2") -> Tensor:
    """Distance of mask coefficients.

    Args:
        pred, target: (P, D).
        loss_type: "l2" (squared error), "l1", "smooth_l1" (squared error / 2 below 1, absolute error - 1/2 above),
            each summed over D; or "cosine" (1 - cosine similarity of the two vectors).

    Returns:
        (P,).
    """
    pred, target = _widened(pred), _widened(target)
    if loss_type == "l2":
        return (pred - target).square().sum(dim=1)
    if loss_type == "l1":
        return (pred - target).abs().sum(dim=1)
    if loss_type == "smooth_l1":
        return F.smooth_l1_loss(pred, target, reduction="none").sum(dim=1)
    return 1 - F.cosine_similarity(pred, target, dim=1)


def pixel_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross-entropy of mask pixels.

    Args:
        logits, masks: (P, S*S); masks bool or zeros and ones.

    Returns:
        (P,), summed over the pixels.
    """
    logits = _widened(logits)
    return F.binary_cross_entropy_with_logits(logits, masks.to(logits.dtype), reduction="none").sum(dim=1)
