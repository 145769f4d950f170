"""Encoders that project the pixels (or their logits) on the rows of a dictionary."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from meinst_d2.encoding.clamp import SigmoidClamp
from meinst_d2.encoding.encoder import MaskEncoder
from meinst_d2.precision import without_autocast


class Dictionary(NamedTuple):
    """What coefficients mean, for all masks alike or with a leading axis of M masks."""

    components: Tensor  # (..., D, S*S), orthonormal rows
    stds: Tensor  # (..., D), std of the coefficients along each row
    means: Tensor  # (..., S*S)


class LinearEncoder(MaskEncoder):
    """coefficient = row . (pixels - mean), divided by its standard deviation where ``whiten``.

    Buffers (float32): ``components`` (D, S*S), ``explained_variances`` (D,) and ``means`` (S*S,), with a leading axis
    of K classes where the encoder is class-specific.
    """

    components: Tensor
    explained_variances: Tensor
    means: Tensor

    def __init__(
        self,
        *,
        dim: int = 60,
        mask_size: int = 28,
        sigmoid: bool = True,
        whiten: bool = True,
        clamp: SigmoidClamp = SigmoidClamp(),
    ) -> None:
        """
        Args:
            dim: D.
            mask_size: S.
            sigmoid: encode the logits of the pixels and decode through a sigmoid; otherwise the pixels themselves.
            whiten: divide coefficients by the standard deviation of their component.
            clamp: the clamp of the logits; where it is random, every call of :meth:`encode` draws it again from torch's
                global generator in training mode, and takes the mean logit in evaluation mode.
        """
        super().__init__()
        if not 1 <= dim <= mask_size**2:
            raise ValueError(f"D = {dim} coefficients of {mask_size} x {mask_size} pixels: choose 1 to {mask_size**2}")
        self.dim, self.mask_size = dim, mask_size
        self.sigmoid, self.whiten, self.clamp = sigmoid, whiten, clamp

    def extra_repr(self) -> str:
        return f"dim={self.dim}, mask_size={self.mask_size}, sigmoid={self.sigmoid}, whiten={self.whiten}"

    def register_dictionary(self, components: Tensor, explained_variances: Tensor, means: Tensor) -> None:
        """Make the buffers, float32, of tensors of their shapes."""
        self.register_buffer("components", components.float())
        self.register_buffer("explained_variances", explained_variances.float())
        self.register_buffer("means", means.float())

    def dictionary(self, classes: Tensor | None) -> Dictionary:
        """The dictionary; where the encoder is class-specific, that of each of M masks."""
        return Dictionary(self.components, self.explained_variances.sqrt(), self.means)

    def encode(self, masks: Tensor, classes: Tensor | None = None) -> Tensor:
        with without_autocast(masks.device):
            components, stds, means = self.dictionary(classes)
            pixels = self._pixel_targets(masks.flatten(1).to(means.dtype)) - means  # (M, S*S)
            # (M, D, S*S) @ (M, S*S, 1), a dictionary per mask, or (M, S*S) @ (S*S, D)
            coeffs = (components @ pixels[..., None])[..., 0] if components.ndim == 3 else pixels @ components.T
            return coeffs / stds if self.whiten else coeffs

    def _pixel_targets(self, masks: Tensor) -> Tensor:
        """The pixels (M, S*S) of zeros and ones, or their logits."""
        if not self.sigmoid:
            return masks
        # The logit of 1 - v is ln((1 - v) / v), that of v its negative: the sign of the pixel times one magnitude.
        signs = 2 * masks - 1
        if not (self.clamp.is_random and self.training):
            return signs * self.clamp.logit_moments()[0]
        v = (torch.rand_like(masks) * self.clamp.high).clamp(min=self.clamp.low)
        return signs * torch.log((1 - v) / v)

    def decode_logits(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        with without_autocast(coeffs.device):
            components, stds, means = self.dictionary(classes)
            coeffs = coeffs.to(means.dtype)
            if self.whiten:
                coeffs = coeffs * stds
            if components.ndim == 3:  # (M, 1, D) @ (M, D, S*S)
                pixels = (coeffs[:, None] @ components)[:, 0] + means
            else:
                pixels = coeffs @ components + means
            return pixels.reshape(*coeffs.shape[:-1], self.mask_size, self.mask_size)

    def decode(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        pixels = self.decode_logits(coeffs, classes)
        return pixels.sigmoid() if self.sigmoid else pixels.clamp(0.01, 0.99)

    def stds(self, classes: Tensor | None = None) -> Tensor:
        # Rows have length 1: one unit moves the pixels by the std that it was divided by.
        stds = self.dictionary(classes).stds
        return stds if self.whiten else torch.ones_like(stds)
