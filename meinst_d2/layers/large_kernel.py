"""A large receptive field from thin convolutions (global convolutional network, arXiv 1703.02719)."""

from __future__ import annotations

from torch import Tensor, nn

from meinst_d2.layers.tower import init_conv


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
    # Published checkpoints hold these weights one level down, under "conv".
    layer = nn.Sequential()
    layer.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel_size, padding="same"))
    init_conv(layer.get_submodule("conv"))  # type: ignore[arg-type]
    return layer
