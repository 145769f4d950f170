"""Mask encoding with principal components, of all masks or of each class's (paper, sections 3.2 and 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meinst_d2.encoding.encoder import MASK_ENCODER_REGISTRY
from meinst_d2.encoding.linear import Dictionary, LinearEncoder
from meinst_d2.encoding.pca import PCABasis


class FittedEncoder(LinearEncoder):
    """Linear encoders whose dictionaries were fitted to masks.

    Buffers (float32, zero until fitted): ``components`` (..., D, S*S), ``explained_variances`` (..., D), ``means``
    (..., S*S), with a leading axis of classes where the encoder is class-specific.
    """

    needs_components = True
    components: Tensor
    explained_variances: Tensor
    means: Tensor

    def _register_dictionaries(self, *leading: int) -> None:
        self.register_buffer("components", torch.zeros(*leading, self.dim, self.mask_size**2))
        self.register_buffer("explained_variances", torch.zeros(*leading, self.dim))
        self.register_buffer("means", torch.zeros(*leading, self.mask_size**2))
        self._known_fitted = False

    @property
    def is_fitted(self) -> bool:
        # Once fitted always fitted: the device is asked only until then.
        if not self._known_fitted:
            self._known_fitted = bool((self.explained_variances > 0).all())
        return self._known_fitted

    def load_bases(self, bases: Sequence[PCABasis]) -> None:
        """Copy dictionaries of the same D and S into the buffers: one, or one per class.

        Raises:
            ValueError: their number, D or S is another.
        """
        wanted = len(self.means) if self.class_specific else 1
        if len(bases) != wanted:
            raise ValueError(
                f"there are components for {len(bases)} classes, {type(self).__name__} needs {wanted}: fit them "
                + ("with meinst fit --class-specific" if self.class_specific else "without --class-specific")
            )
        for basis in bases:
            if (basis.dim, basis.mask_size) != (self.dim, self.mask_size):
                raise ValueError(
                    f"the components have D = {basis.dim} and S = {basis.mask_size}, "
                    f"the encoder needs D = {self.dim} and S = {self.mask_size}"
                )
        with torch.no_grad():
            for buffer, arrays in (
                (self.components, [basis.components for basis in bases]),
                (self.explained_variances, [basis.explained_variance for basis in bases]),
                (self.means, [basis.mean for basis in bases]),
            ):
                buffer.copy_(torch.as_tensor(np.stack(arrays)).reshape(buffer.shape))


@MASK_ENCODER_REGISTRY.register()
class PCAEncoder(FittedEncoder):
    """Coefficients along the principal components of all classes' masks, whitened by default."""

    def __init__(self, **kwargs: Any) -> None:
        """
        Args:
            kwargs: of :class:`~meinst_d2.encoding.linear.LinearEncoder`.
        """
        super().__init__(**kwargs)
        self._register_dictionaries()

    def dictionary(self, classes: Tensor | None) -> Dictionary:
        return Dictionary(self.components, self.explained_variances.sqrt(), self.means)


@MASK_ENCODER_REGISTRY.register()
class ClassPCAEncoder(FittedEncoder):
    """One dictionary per class (paper, section 4.1): the true class's in training, the predicted one's at test."""

    class_specific = True

    def __init__(self, *, num_classes: int, **kwargs: Any) -> None:
        """
        Args:
            num_classes: K.
            kwargs: of :class:`~meinst_d2.encoding.linear.LinearEncoder`.
        """
        super().__init__(**kwargs)
        self._register_dictionaries(num_classes)

    def dictionary(self, classes: Tensor | None) -> Dictionary:
        if classes is None:
            raise ValueError("ClassPCAEncoder encodes and decodes masks of known classes only: pass classes")
        return Dictionary(self.components[classes], self.explained_variances[classes].sqrt(), self.means[classes])
