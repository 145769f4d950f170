"""Building blocks of the head: convolutions, plain, deformable and of a large kernel."""

from __future__ import annotations

from typing import Literal

import torch
from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from meinst_d2.precision import without_autocast

NormType = Literal["GN", "none"]
DeformType = Literal["none", "last", "all"]


class Scale(nn.Module):
    """Multiplies its input by one learnable scalar, one per feature level in FCOS."""

    def __init__(self, init: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([init]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def plain_conv(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2d:
    """A 3 x 3 convolution with weights from N(0, 0.01) and a constant bias."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    init_conv(conv, bias)
    return conv


def init_conv(conv: nn.Conv2d, bias: float = 0.0) -> None:
    """Draw the weights from N(0, 0.01) and set the bias."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)


class DeformConv(nn.Module):
    """A k x k convolution without bias whose taps move by predicted offsets, on CPU and GPU.

    Offsets start at zero, where the layer equals a plain convolution with the same weight. A modulated one (version 2,
    arXiv 1811.11168) also predicts a factor in (0, 1) for every tap, one half at the start.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, modulated: bool = False) -> None:
        super().__init__()
        self.padding = kernel_size // 2
        self.num_offsets = 2 * kernel_size**2
        num_predicted = self.num_offsets + (kernel_size**2 if modulated else 0)
        self.offset = nn.Conv2d(in_channels, num_predicted, kernel_size, padding=self.padding)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=self.padding, bias=False)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        c2_msra_fill(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        # The operator has no autocast rule of its own: it needs one dtype throughout.
        with without_autocast(x.device):
            x = x.to(self.conv.weight.dtype)
            predicted = self.offset(x)
            offsets, factors = predicted[:, : self.num_offsets], predicted[:, self.num_offsets :]
            mask = factors.sigmoid() if factors.shape[1] else None
            out: Tensor = deform_conv2d(x, offsets, self.conv.weight, padding=self.padding, mask=mask)
            return out


class LargeKernelConv(nn.Module):
    """The sum of a k x 1 convolution before a 1 x k one, and of a 1 x k one before a k x 1 one.

    The map keeps its size; for an even k the extra row and column of padding lie below and on the right. Weights start
    from N(0, 0.01), biases from zero.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 9) -> None:
        super().__init__()
        tall, wide = (kernel_size, 1), (1, kernel_size)
        self.conv_l1 = _named_conv(in_channels, out_channels, tall)
        self.conv_l2 = _named_conv(out_channels, out_channels, wide)
        self.conv_r1 = _named_conv(in_channels, out_channels, wide)
        self.conv_r2 = _named_conv(out_channels, out_channels, tall)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_l2(self.conv_l1(x)) + self.conv_r2(self.conv_r1(x))
        return out


def _named_conv(in_channels: int, out_channels: int, kernel_size: tuple[int, int]) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding="same")
    init_conv(conv)
    layer = nn.Sequential()
    layer.add_module("conv", conv)  # published checkpoints hold these weights one level down, under "conv"
    return layer
