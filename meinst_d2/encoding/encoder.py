"""The interface between masks and the vectors that the network regresses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from fvcore.common.registry import Registry
from torch import Tensor, nn

MASK_ENCODER_REGISTRY = Registry("MASK_ENCODER")
MASK_ENCODER_REGISTRY.__doc__ = """Encoders by class name; MODEL.MEINST.ENCODER chooses one.

An encoder is constructed with ``dim``, ``mask_size``, ``sigmoid``, ``whiten`` and ``clamp``, and where it is
``class_specific`` also with ``num_classes``.
"""


class MaskEncoder(nn.Module, ABC):
    """Turns S x S masks into D coefficients and back.

    What an encoder has learned lives in its buffers, so it travels with the checkpoint.

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
            classes: (M,) int64, of each mask.

        Returns:
            (M, D) float32.
        """

    @abstractmethod
    def decode_logits(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        """The linear part of decoding, before the pixels become probabilities.

        Args:
            coeffs: (M, D) of any float dtype.
            classes: (M,) int64, of each mask.

        Returns:
            (M, S, S) float32.
        """

    @abstractmethod
    def decode(self, coeffs: Tensor, classes: Tensor | None = None) -> Tensor:
        """Masks of coefficients.

        Args:
            coeffs: (M, D) of any float dtype.
            classes: (M,) int64, of each mask.

        Returns:
            (M, S, S) float32 probabilities in (0, 1).
        """

    @abstractmethod
    def deviations(self, classes: Tensor | None = None) -> Tensor:
        """How far one unit of each coefficient moves the decoded logits (as a vector of S*S pixels).

        Args:
            classes: (M,) int64.

        Returns:
            (D,), or (M, D) where the encoder is class-specific; float32.
        """
