"""From predictions and targets to losses (paper, equations 3 and 4).

Symbols: N images, K classes, R locations of an image over all levels, P positive locations and M instances of the
batch, S mask side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from meinst_d2.encoding.encoder import MaskEncoder
from meinst_d2.fcos.assign import Positives
from meinst_d2.fcos.losses import BoxLossType, centerness_loss, focal_loss, iou_loss
from meinst_d2.modeling.head import HeadOutput
from meinst_d2.modeling.mask_loss import MaskLoss, MaskTargets


class MEInstCriterion(nn.Module):
    """The losses of classes, boxes, centerness and masks.

    With P the mean number of positives of a process (at least 1), c_i the centerness targets and Z their mean sum over
    processes (at least 1e-6):

    - ``loss_cls``: focal loss, summed over all locations and classes, / P;
    - ``loss_box``: sum of c_i * IoU loss, / Z;
    - ``loss_centerness``: binary cross-entropy, summed over positives, / P;
    - ``loss_mask``: sum of c_i * mask loss, / max(Z * T, 1) with T terms per mask, see
      :class:`~meinst_d2.modeling.mask_loss.MaskLoss`.
    """

    def __init__(
        self,
        *,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        box_loss_type: BoxLossType = "giou",
        mask_loss: MaskLoss | None = None,
        weights: Mapping[str, float] | None = None,
        reduce_mean: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        """
        Args:
            focal_alpha, focal_gamma: of the focal loss; gamma is 0 or at least 1.
            box_loss_type: "giou", "iou" or "linear_iou".
            mask_loss: of the mask branch, by default the published one.
            weights: factors of the losses, by "cls", "box", "centerness" and "mask"; the paper's lambdas are all 1.
            reduce_mean: averages a tensor over the training processes.
        """
        super().__init__()
        if 0 < focal_gamma < 1:
            raise ValueError(
                f"FOCAL_LOSS_GAMMA {focal_gamma} has no gradient where a logit is saturated: choose 0, or 1 or more"
            )
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.box_loss_type: BoxLossType = box_loss_type
        self.mask_loss = mask_loss or MaskLoss()
        self.weights = {"cls": 1.0, "box": 1.0, "centerness": 1.0, "mask": 1.0, **(weights or {})}
        self.reduce_mean = reduce_mean
        self._counts: Tensor | None = None

    @contextmanager
    def normalized_by(self, counts: Tensor) -> Iterator[None]:
        """Within the block, take these counts for those of the batch: that is then a part of a larger one.

        Args:
            counts: (2,), the number of positives and the sum of their centerness, each per part.
        """
        self._counts = counts
        try:
            yield
        finally:
            self._counts = None

    def mean_counts(self, centerness: Tensor) -> Tensor:
        """(2,), how many positives a process has on average, and the sum of their centerness, of (P,) of this one."""
        if self._counts is not None:
            return self._counts
        total = centerness.sum()
        return self.reduce_mean(torch.stack((torch.full_like(total, len(centerness)), total)))

    def forward(
        self,
        output: HeadOutput,
        positives: Positives,
        gt_classes: Tensor,
        gt_masks: Tensor | None = None,
        mask_encoder: MaskEncoder | None = None,
    ) -> dict[str, Tensor]:
        """
        Args:
            output: predictions for N images.
            positives: P positive locations.
            gt_classes: (M,) int64 in [0, K).
            gt_masks: (M, S, S) bool; None without a mask branch.
            mask_encoder: fitted; None without a mask branch.

        Returns:
            Scalars by name. Without positives those of boxes, centerness and masks are 0, still attached to the graph.
        """
        centerness = positives.centerness  # (P,)
        counts = self.mean_counts(centerness)
        num_positives, total_centerness = counts[0].clamp(min=1), counts[1].clamp(min=1e-6)
        at = (positives.image_idx, positives.location_idx)

        cls_loss = focal_loss(
            _flatten_levels(output.cls_logits),
            positives.image_idx,
            gt_classes[positives.gt_idx],
            positives.location_idx,
            alpha=self.focal_alpha,
            gamma=self.focal_gamma,
        )
        box_loss = iou_loss(gather(output.box_ltrb, *at), positives.ltrb, self.box_loss_type)
        center_loss = centerness_loss(gather(output.centerness, *at)[:, 0], centerness)
        losses = {
            "loss_cls": self.weights["cls"] * cls_loss / num_positives,
            "loss_box": self.weights["box"] * (box_loss * centerness).sum() / total_centerness,
            "loss_centerness": self.weights["centerness"] * center_loss / num_positives,
        }
        if output.mask_coeffs is not None and gt_masks is not None and mask_encoder is not None:
            targets = MaskTargets(gt_masks, gt_classes, positives.gt_idx)
            coeffs = gather(output.mask_coeffs, *at)
            mask_loss = self.mask_loss(coeffs, targets, mask_encoder, centerness, total_centerness)
            losses["loss_mask"] = self.weights["mask"] * mask_loss
        return losses


def _flatten_levels(per_level: Sequence[Tensor]) -> Tensor:
    """L tensors (N, C, H, W) -> (N, C, R)."""
    return torch.cat([x.flatten(2) for x in per_level], dim=2)


def gather(per_level: Sequence[Tensor], image_idx: Tensor, location_idx: Tensor) -> Tensor:
    """The channels at P locations: (P, C)."""
    return _flatten_levels(per_level)[image_idx, :, location_idx]
