"""No encoding: one coefficient per pixel, its logit (paper, table 3, "w/o")."""

from __future__ import annotations

import torch
from torch import Tensor

from meinst_d2.encoding.encoder import MaskEncoder


class PixelEncoder(MaskEncoder):
    """The S x S grid itself. Its coefficients are +1 on the mask and -1 beside it, and any logits decode."""

    _ones: Tensor

    def __init__(self, *, mask_size: int = 28) -> None:
        """
        Args:
            mask_size: S; D is S*S.
        """
        super().__init__()
        self.dim, self.mask_size = mask_size**2, mask_size
        self.register_buffer("_ones", torch.ones(self.dim), persistent=False)

    def extra_repr(self) -> str:
        return f"mask_size={self.mask_size}"

    def encode(self, masks: Tensor, classes: Tensor | None = None) -> Tensor:
        return 2 * masks.flatten(1).float() - 1

    def decode_logits(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        return coeffs.float().reshape(*coeffs.shape[:-1], self.mask_size, self.mask_size)

    def decode(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        return self.decode_logits(coeffs).sigmoid()

    def deviations(self, classes: Tensor | None = None) -> Tensor:
        return self._ones
