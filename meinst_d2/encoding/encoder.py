"""The interface between masks and the vectors that the network regresses."""

from __future__ import annotations

from abc import ABC, abstractmethod

from fvcore.common.registry import Registry
from torch import Tensor, nn

MASK_ENCODER_REGISTRY = Registry("MASK_ENCODER")
MASK_ENCODER_REGISTRY.__doc__ = "Encoders by class name; MODEL.MEINST.ENCODER chooses one."


class MaskEncoder(nn.Module, ABC):
    """Turns S x S masks into D coefficients and back.

    What an encoder has learned lives in its buffers, so it travels with the checkpoint.

    Attributes:
        dim: D, the number of coefficients.
        mask_size: S, the side of the mask template.
    """

    dim: int
    mask_size: int

    @property
    @abstractmethod
    def is_fitted(self) -> bool:
        """Whether the encoder can encode and decode (a dictionary has been fitted or loaded)."""

    @abstractmethod
    def encode(self, masks: Tensor) -> Tensor:
        """Coefficients of masks, as training targets.

        Args:
            masks: (M, S, S), bool or zeros and ones of any dtype.

        Returns:
            (M, D) float32.
        """

    @abstractmethod
    def decode_logits(self, coeffs: Tensor) -> Tensor:
        """The linear part of decoding, before the pixels become probabilities.

        Args:
            coeffs: (..., D) of any float dtype.

        Returns:
            (..., S, S) float32.
        """

    @abstractmethod
    def decode(self, coeffs: Tensor) -> Tensor:
        """Masks of coefficients.

        Args:
            coeffs: (..., D) of any float dtype.

        Returns:
            (..., S, S) float32 probabilities in (0, 1).
        """
