"""The head that all feature levels share: classes, boxes, centerness and mask coefficients at every location."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch.nn.functional as F
from torch import Tensor, nn

from meinst_d2.modeling.layers import DeformConv, DeformType, LargeKernelConv, NormType, Scale, init_conv, plain_conv

GROUPS = 32
"""Of GroupNorm, as in FCOS."""


@dataclass(frozen=True)
class HeadOutput:
    """Raw predictions, one tensor per feature level, float32.

    Attributes:
        cls_logits: (N, K, H, W).
        box_ltrb: (N, 4, H, W), non-negative distances to the sides of the box, in strides.
        centerness: (N, 1, H, W) logits.
        mask_coeffs: (N, D, H, W), or None for a head without a mask branch.
    """

    cls_logits: list[Tensor]
    box_ltrb: list[Tensor]
    centerness: list[Tensor]
    mask_coeffs: list[Tensor] | None

    @property
    def level_shapes(self) -> list[tuple[int, int]]:
        """(height, width) of each level."""
        return [(x.shape[-2], x.shape[-1]) for x in self.cls_logits]


@dataclass(frozen=True)
class TowerConfig:
    """What the towers are made of.

    Attributes:
        num_shared_convs: convolutions before the towers part.
        num_cls_convs, num_box_convs, num_mask_convs: convolutions of each tower.
        norm: "GN" (32 groups, which the channels must be a multiple of) or "none".
        deform: which convolutions of every tower are deformable: "none", "last" or "all".
        deform_modulated: whether deformable convolutions are of version 2.
        large_kernel_size: k of a large-kernel mask predictor; None for a 3 x 3 convolution.
    """

    num_shared_convs: int = 0
    num_cls_convs: int = 4
    num_box_convs: int = 4
    num_mask_convs: int = 4
    norm: NormType = "GN"
    deform: DeformType = "none"
    deform_modulated: bool = False
    large_kernel_size: int | None = None

    def build(self, channels: int, num_convs: int) -> nn.Sequential:
        """A tower: blocks of 3 x 3 convolution, normalisation and ReLU that keep the channels; an identity for 0.

        The layers stand flat in the Sequential (convolution i is number 3 * i, or 2 * i without normalisation), as the
        names in published checkpoints have it. Plain convolutions start from N(0, 0.01) and zero bias.

        Raises:
            ValueError: an unknown ``norm``, or channels that 32 groups cannot share.
        """
        if self.norm not in get_args(NormType):
            raise ValueError(f"the head's norm {self.norm!r} is none of {', '.join(get_args(NormType))}")
        if self.norm == "GN" and channels % GROUPS:
            raise ValueError(
                f"GroupNorm needs channels in multiples of {GROUPS}, got {channels}: change the FPN's channels"
            )
        layers: list[nn.Module] = []
        for i in range(num_convs):
            if self.deform == "all" or (self.deform == "last" and i == num_convs - 1):
                layers.append(DeformConv(channels, channels, modulated=self.deform_modulated))
            else:
                layers.append(plain_conv(channels, channels))
            if self.norm == "GN":
                layers.append(nn.GroupNorm(GROUPS, channels))
            layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    def build_mask_branch(self, channels: int, mask_dim: int) -> tuple[nn.Sequential, nn.Module]:
        """The mask tower and the mask predictor, for D coefficients."""
        tower = self.build(channels, self.num_mask_convs)
        if self.large_kernel_size is not None:
            return tower, LargeKernelConv(channels, mask_dim, self.large_kernel_size)
        return tower, plain_conv(channels, mask_dim)


def reset_predictor(predictor: nn.Module) -> None:
    """Re-initialize the convolutions of a predictor: what it had learned means nothing any more."""
    for module in predictor.modules():
        if isinstance(module, nn.Conv2d):
            init_conv(module)


class MEInstHead(nn.Module):
    """FCOS's head with one more branch (paper, figure 2). Centerness sits on the box tower."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        mask_dim: int | None,
        towers: TowerConfig = TowerConfig(),
        use_scale: bool = True,
        prior_prob: float = 0.01,
    ) -> None:
        """
        Args:
            in_channels: channels of every feature map.
            num_levels: L.
            num_classes: K.
            mask_dim: D, or None for no mask branch.
            towers: what the towers are made of.
            use_scale: learn one factor per level on the box distances.
            prior_prob: class probability that an untrained head predicts everywhere.
        """
        super().__init__()
        self.share_tower = towers.build(in_channels, towers.num_shared_convs)
        self.cls_tower = towers.build(in_channels, towers.num_cls_convs)
        self.bbox_tower = towers.build(in_channels, towers.num_box_convs)
        self.cls_logits = plain_conv(in_channels, num_classes, bias=-math.log((1 - prior_prob) / prior_prob))
        self.bbox_pred = plain_conv(in_channels, 4)
        self.centerness = plain_conv(in_channels, 1)
        self.scales = nn.ModuleList(Scale() if use_scale else nn.Identity() for _ in range(num_levels))
        self.mask_tower: nn.Sequential | None = None
        self.mask_pred: nn.Module | None = None
        if mask_dim is not None:
            self.mask_tower, self.mask_pred = towers.build_mask_branch(in_channels, mask_dim)

    def reset_mask_predictor(self) -> None:
        """Re-initialize the mask predictor: its outputs mean nothing under another dictionary."""
        if self.mask_pred is not None:
            reset_predictor(self.mask_pred)

    def forward(self, features: Sequence[Tensor]) -> HeadOutput:
        """Predict on L feature maps (N, C, H, W)."""
        cls_logits, box_ltrb, centerness, mask_coeffs = [], [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            shared = self.share_tower(feature)
            box_feature = self.bbox_tower(shared)
            cls_logits.append(self.cls_logits(self.cls_tower(shared)).float())
            box_ltrb.append(F.relu(scale(self.bbox_pred(box_feature).float())))
            centerness.append(self.centerness(box_feature).float())
            if self.mask_tower is not None and self.mask_pred is not None:
                mask_coeffs.append(self.mask_pred(self.mask_tower(shared)).float())
        return HeadOutput(cls_logits, box_ltrb, centerness, mask_coeffs or None)
