"""The interface between masks and the vectors that the network regresses, and the encoder that does nothing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn

MASK_ENCODER_REGISTRY = Registry("MASK_ENCODER")
MASK_ENCODER_REGISTRY.__doc__ = """Encoders by class name; MODEL.MEINST.ENCODER chooses one.

An encoder is constructed with ``dim``, ``mask_size``, ``sigmoid``, ``whiten`` and ``clamp``, and where it is
``class_specific`` also with ``num_classes``.
"""


class MaskEncoder(nn.Module, ABC):
    """Turns S x S masks into D coefficients and back.

    What an encoder has learned lives in its buffers, so it travels with the checkpoint. Every method takes the
    ``classes`` of its masks, (M,) int64, which only class-specific encoders need.

    Attributes:
        dim: D, the number of coefficients.
        mask_size: S, the side of the mask template.
        needs_components: whether it must be fitted to masks before use.
        class_specific: whether masks of different classes are encoded differently, so that ``classes`` are needed.
    """

    dim: int
    mask_size: int
    needs_components: ClassVar[bool] = False
    class_specific: ClassVar[bool] = False

    @property
    def is_fitted(self) -> bool:
        """Whether the encoder can encode and decode (a dictionary has been fitted or loaded)."""
        return True

    @abstractmethod
    def encode(self, masks: Tensor, classes: Tensor | None = None) -> Tensor:
        """Coefficients of masks, as training targets.

        Args:
            masks: (M, S, S), bool or zeros and ones of any dtype.
            classes: (M,).

        Returns:
            (M, D) float32.
        """

    @abstractmethod
    def decode_logits(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        """(M, S, S) float32, the linear part of decoding (M, D) coefficients, before pixels become probabilities."""

    @abstractmethod
    def decode(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        """(M, S, S) float32, probabilities in (0, 1) of (M, D) coefficients of any float dtype."""

    @abstractmethod
    def stds(self, classes: Tensor | None = None) -> Tensor:
        """(D,), or (M, D) where class-specific: how far a unit of each coefficient moves the S*S decoded logits."""


class PixelEncoder(MaskEncoder):
    """The S x S grid itself: D is S*S, one coefficient per pixel (paper, table 3, "w/o").

    Its coefficients are +1 on the mask and -1 beside it, and any logits decode.
    """

    _ones: Tensor

    def __init__(self, *, mask_size: int = 28) -> None:
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

    def stds(self, classes: Tensor | None = None) -> Tensor:
        return self._ones
