"""The stacks of convolutions between a feature map and its predictors."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from meinst_d2.layers.deform_conv import DeformConv
from meinst_d2.layers.winograd import TrainingConv2d

NormType = Literal["GN", "none"]
NORM_TYPES: tuple[str, ...] = get_args(NormType)
GROUPS = 32
DeformType = Literal["none", "last", "all"]
DEFORM_TYPES: tuple[str, ...] = get_args(DeformType)


def build_tower(
    channels: int, num_convs: int, *, norm: NormType = "GN", deform: DeformType = "none", modulated: bool = False
) -> nn.Sequential:
    """``num_convs`` blocks of 3 x 3 convolution, normalisation and ReLU that keep the number of channels.

    The layers stand flat in the Sequential (convolution i is number 3 * i, or 2 * i without normalisation), as the
    names in published checkpoints have it. Plain convolutions start from N(0, 0.01) and zero bias.

    Args:
        channels: C, in and out; with "GN" a multiple of 32.
        num_convs: depth; 0 gives an identity.
        norm: "GN" (32 groups) or "none".
        deform: which convolutions are deformable.
        modulated: deformable convolutions of version 2.

    Raises:
        ValueError: an unknown ``norm``, or channels that 32 groups cannot share.
    """
    if norm not in NORM_TYPES:
        raise ValueError(f"the head's norm {norm!r} is none of {', '.join(NORM_TYPES)}")
    if norm == "GN" and channels % GROUPS:
        raise ValueError(
            f"GroupNorm needs channels in multiples of {GROUPS}, got {channels}: change the FPN's channels"
        )
    layers: list[nn.Module] = []
    for i in range(num_convs):
        deformable = deform == "all" or (deform == "last" and i == num_convs - 1)
        conv = DeformConv(channels, channels, modulated=modulated) if deformable else plain_conv(channels, channels)
        layers.append(conv)
        if norm == "GN":
            layers.append(nn.GroupNorm(GROUPS, channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def plain_conv(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2d:
    """A 3 x 3 convolution with weights from N(0, 0.01) and a constant bias."""
    conv = TrainingConv2d(in_channels, out_channels)
    init_conv(conv, bias)
    return conv


def init_conv(conv: nn.Conv2d, bias: float = 0.0) -> None:
    """Draw the weights from N(0, 0.01) and set the bias."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
