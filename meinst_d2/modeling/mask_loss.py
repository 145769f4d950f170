"""What predicted coefficients cost (paper, equation 4 and tables 3 and 4).

Symbols: P positive locations and M instances of the batch, D coefficients, S mask side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from meinst_d2.encoding.encoder import MaskEncoder
from meinst_d2.fcos.losses import CoefficientLossType, coefficient_loss, pixel_loss

MaskRepresentation = Literal["explicit", "implicit", "none"]
MaskLossWeights = Literal["uniform", "deviation"]


@dataclass(frozen=True)
class MaskTargets:
    """What the masks of positive locations should be.

    Attributes:
        masks: (M, S, S) bool.
        classes: (M,) int64.
        gt_idx: (P,) int64, the instance of each location.
    """

    masks: Tensor
    classes: Tensor
    gt_idx: Tensor


class MaskLoss(nn.Module):
    """The weighted mean over locations and over the terms of a location.

    The sum of w_i * L_i over locations is divided by max(W * T, 1), where W is the mean over processes of the sum of
    the weights, and T the number of terms of L_i:

    - "explicit": a loss of coefficients, T = D ("l2", "l1", "smooth_l1") or 1 ("cosine"). The masks are encoded once
      per instance. With "deviation" weights, every error is first multiplied by the standard deviation of its
      component, scaled to a root mean square of 1: the loss is then the error of the decoded logits.
    - "implicit" and "none": binary cross-entropy of the decoded pixels, T = S*S. The gradient passes through the fixed
      decoder. ("none" has a decoder that does nothing.)
    """

    def __init__(
        self,
        *,
        representation: MaskRepresentation = "explicit",
        loss_type: CoefficientLossType = "l2",
        weights: MaskLossWeights = "uniform",
    ) -> None:
        """
        Args:
            representation: where errors are measured, see above.
            loss_type: "l2", "l1", "smooth_l1" or "cosine", of "explicit".
            weights: "uniform" or "deviation", of "explicit".
        """
        super().__init__()
        self.representation = representation
        self.loss_type: CoefficientLossType = loss_type
        self.weights = weights

    def forward(
        self, pred_coeffs: Tensor, targets: MaskTargets, encoder: MaskEncoder, weight: Tensor, total_weight: Tensor
    ) -> Tensor:
        """
        Args:
            pred_coeffs: (P, D) float32.
            targets: of the P locations.
            encoder: fitted.
            weight: (P,) of each location.
            total_weight: (), W.

        Returns:
            (), 0 and attached to the graph where there are no locations.
        """
        if self.representation == "explicit":
            loss, terms = self._explicit(pred_coeffs, targets, encoder)
        else:
            logits = encoder.decode_logits(pred_coeffs, targets.classes[targets.gt_idx]).flatten(1)  # (P, S*S)
            loss, terms = pixel_loss(logits, targets.masks[targets.gt_idx].flatten(1)), logits.shape[1]
        return (loss * weight).sum() / (total_weight * terms).clamp(min=1)

    def _explicit(self, pred_coeffs: Tensor, targets: MaskTargets, encoder: MaskEncoder) -> tuple[Tensor, int]:
        with torch.no_grad():
            gt_coeffs = encoder.encode(targets.masks, targets.classes)[targets.gt_idx]  # (P, D)
        if self.weights == "deviation":
            stds = encoder.stds(targets.classes)  # (D,) or (M, D)
            factors = stds / stds.square().mean(-1, keepdim=True).sqrt()  # their root mean square is 1
            if factors.ndim == 2:
                factors = factors[targets.gt_idx]
            pred_coeffs, gt_coeffs = pred_coeffs * factors, gt_coeffs * factors
        loss = coefficient_loss(pred_coeffs, gt_coeffs, self.loss_type)
        return loss, 1 if self.loss_type == "cosine" else pred_coeffs.shape[1]
