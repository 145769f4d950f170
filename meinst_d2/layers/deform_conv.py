"""Deformable convolution as one layer: it predicts its own offsets (arXiv 1703.06211)."""

from __future__ import annotations

from fvcore.nn.weight_init import c2_msra_fill
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from meinst_d2.precision import without_autocast


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
