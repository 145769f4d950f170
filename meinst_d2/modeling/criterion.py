"""From predictions and targets to losses (paper, equations 3 and 4).

Symbols: N images, K classes, R locations of an image over all levels, P positive locations and M instances of the
batch, D coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from meinst_d2.fcos.assign import Positives
from meinst_d2.fcos.losses import BoxLossType, centerness_loss, coefficient_l2_loss, focal_loss, iou_loss
from meinst_d2.modeling.head import HeadOutput


class MEInstCriterion(nn.Module):
    """The losses of classes, boxes, centerness and mask coefficients.

    With P the mean number of positives of a process (at least 1), c_i the centerness targets and Z their mean sum over
    processes (at least 1e-6):

    - ``loss_cls``: focal loss, summed over all locations and classes, / P;
    - ``loss_box``: sum of c_i * IoU loss, / Z;
    - ``loss_centerness``: binary cross-entropy, summed over positives, / P;
    - ``loss_mask``: sum of c_i * squared distance of coefficients, / max(Z * D, 1).
    """

    def __init__(
        self,
        *,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss_type: BoxLossType = "giou",
        mask_weight: float = 1.0,
        reduce_mean: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        """
        Args:
            focal_alpha, focal_gamma: of the focal loss.
            box_loss_type: "giou", "iou" or "linear_iou".
            mask_weight: factor of the mask loss.
            reduce_mean: averages a tensor over the training processes.
        """
        super().__init__()
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.box_loss_type = box_loss_type
        self.mask_weight = mask_weight
        self.reduce_mean = reduce_mean

    def forward(
        self, output: HeadOutput, positives: Positives, gt_classes: Tensor, gt_coeffs: Tensor | None
    ) -> dict[str, Tensor]:
        """
        Args:
            output: predictions for N images.
            positives: P positive locations.
            gt_classes: (M,) int64 in [0, K).
            gt_coeffs: (M, D) encoded masks; None without a mask branch.

        Returns:
            Scalars by name. Without positives those of boxes, centerness and masks are 0, still attached to the graph.
        """
        weight = positives.centerness  # (P,)
        weight_sum = weight.sum()
        counts = self.reduce_mean(torch.stack((torch.full_like(weight_sum, len(positives)), weight_sum)))
        num_positives, total_weight = counts[0].clamp(min=1), counts[1].clamp(min=1e-6)
        at = (positives.image_idx, positives.location_idx)

        cls_loss = focal_loss(
            _flatten_levels(output.cls_logits),
            positives.image_idx,
            gt_classes[positives.gt_idx],
            positives.location_idx,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )
        box_loss = iou_loss(_gather(output.box_ltrb, *at), positives.ltrb, self.box_loss_type)
        losses = {
            "loss_cls": cls_loss / num_positives,
            "loss_box": (box_loss * weight).sum() / total_weight,
            "loss_centerness": centerness_loss(_gather(output.centerness, *at)[:, 0], weight) / num_positives,
        }
        if output.mask_coeffs is not None and gt_coeffs is not None:
            pred_coeffs = _gather(output.mask_coeffs, *at)  # (P, D)
            mask_loss = coefficient_l2_loss(pred_coeffs, gt_coeffs[positives.gt_idx])
            normalizer = (total_weight * pred_coeffs.shape[1]).clamp(min=1)
            losses["loss_mask"] = self.mask_weight * (mask_loss * weight).sum() / normalizer
        return losses


def _flatten_levels(per_level: Sequence[Tensor]) -> Tensor:
    """L tensors (N, C, H, W) -> (N, C, R)."""
    return torch.cat([x.flatten(2) for x in per_level], dim=2)


def _gather(per_level: Sequence[Tensor], image_idx: Tensor, location_idx: Tensor) -> Tensor:
    """The channels at P locations: (P, C)."""
    return _flatten_levels(per_level)[image_idx, :, location_idx]
