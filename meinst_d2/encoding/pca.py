"""Mask encoding with principal components, of all masks or of each class's (paper, sections 3.2 and 4.1).

Symbols: D components, S mask side, x (S*S,) a mask, s = 2x - 1 its signs, c (S*S,) random magnitudes of its logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meinst_d2.encoding.clamp import SigmoidClamp
from meinst_d2.encoding.encoder import MASK_ENCODER_REGISTRY
from meinst_d2.encoding.linear import Dictionary, LinearEncoder
from meinst_d2.encoding.moments import PixelMoments


@dataclass(frozen=True)
class PCABasis:
    """A fitted dictionary."""

    components: npt.NDArray[np.floating]  # (D, S*S), orthonormal rows in order of falling variance
    mean: npt.NDArray[np.floating]  # (S*S,)
    explained_variance: npt.NDArray[np.floating]  # (D,), the variance of the masks along each component
    explained_variance_ratio: npt.NDArray[np.floating]  # (D,), its share of the total variance

    @property
    def dim(self) -> int:
        """D."""
        return len(self.components)

    @property
    def mask_size(self) -> int:
        """S."""
        return math.isqrt(len(self.mean))

    @property
    def sigmoid(self) -> bool:
        """Whether it was fitted on logits: the mean of pixels lies in [0, 1], the mean of their logits does not."""
        return bool(self.mean.min() < 0 or self.mean.max() > 1)

    def truncated(self, dim: int) -> PCABasis:
        """The first ``dim`` components.

        Raises:
            ValueError: there are fewer.
        """
        if not 1 <= dim <= self.dim:
            fix = f"choose --dim {self.dim} or less, or give more masks"
            raise ValueError(f"the masks determine {self.dim} components, not {dim}: {fix}")
        return PCABasis(
            self.components[:dim], self.mean, self.explained_variance[:dim], self.explained_variance_ratio[:dim]
        )


def fit_pca(moments: PixelMoments, clamp: SigmoidClamp | None = SigmoidClamp()) -> PCABasis:
    """Exact PCA of all the masks that were counted, with the random clamp in closed form.

    The logits of a mask are s * c, pixel by pixel, with independent magnitudes c. Over the randomness, their covariance
    is E[c]^2 Cov(s) + Var(c) I, because s * s is 1: the components are those of the signs, and each variance is scaled
    by E[c]^2 and raised by Var(c).

    Args:
        moments: counts of at least two different masks.
        clamp: the clamp of the logits, or None to take the pixels themselves (no sigmoid).

    Returns:
        Every component that the masks determine, float64. The sign of a component is chosen so that the first of its
        entries whose magnitude is within one millionth of the largest is positive.

    Raises:
        ValueError: the masks do not vary.
    """
    scale, offset, noise = 1.0, 0.0, 0.0
    if clamp is not None:
        magnitude, noise = clamp.logit_moments()  # E[c], Var(c)
        scale, offset = 2 * magnitude, -magnitude  # E[c] s is 2 E[c] x - E[c]
    values, vectors = np.linalg.eigh(moments.covariance())  # rising; (S*S,), (S*S, S*S) with a vector per column
    variances, components = np.maximum(values[::-1], 0), vectors.T[::-1]
    # n masks span at most n - 1 directions around their mean; what rounding leaves of the others is far below 1e-10.
    rank = min(int((variances > variances[0] * 1e-10).sum()), moments.count - 1)
    if rank == 0:
        raise ValueError(f"all {moments.count} masks are the same: components need masks that differ")
    explained = scale**2 * variances + noise
    return PCABasis(
        components=_with_positive_peak(components[:rank]),
        mean=scale * moments.mean() + offset,
        explained_variance=explained[:rank],
        explained_variance_ratio=explained[:rank] / explained.sum(),
    )


def _with_positive_peak(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    # Mirrored datasets have components whose peak occurs twice with opposite signs, equal up to rounding.
    magnitude = np.abs(rows)
    peak = (magnitude >= magnitude.max(axis=1, keepdims=True) * (1 - 1e-6)).argmax(axis=1)
    signs: npt.NDArray[np.float64] = np.sign(rows[np.arange(len(rows)), peak])
    return rows * signs[:, None]


class FittedEncoder(LinearEncoder):
    """Linear encoders whose dictionaries were fitted to masks; their buffers are zero until then."""

    needs_components = True

    def __init__(self, *, num_classes: int | None = None, **kwargs: Any) -> None:
        """
        Args:
            num_classes: K dictionaries, or None for one.
            kwargs: of :class:`~meinst_d2.encoding.linear.LinearEncoder`.
        """
        super().__init__(**kwargs)
        leading, pixels = () if num_classes is None else (num_classes,), self.mask_size**2
        self.register_dictionary(
            torch.zeros(*leading, self.dim, pixels), torch.zeros(*leading, self.dim), torch.zeros(*leading, pixels)
        )
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
                f"the number of dictionaries is {len(bases)}, {type(self).__name__} needs {wanted}: fit them "
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


@MASK_ENCODER_REGISTRY.register()
class ClassPCAEncoder(FittedEncoder):
    """One dictionary per class (paper, section 4.1): the true class's in training, the predicted one's at test."""

    class_specific = True

    def __init__(self, *, num_classes: int, **kwargs: Any) -> None:
        """``num_classes`` is K; the others are those of :class:`~meinst_d2.encoding.linear.LinearEncoder`."""
        super().__init__(num_classes=num_classes, **kwargs)

    def dictionary(self, classes: Tensor | None) -> Dictionary:
        if classes is None:
            raise ValueError("ClassPCAEncoder encodes and decodes masks of known classes only: pass classes")
        return Dictionary(self.components[classes], self.explained_variances[classes].sqrt(), self.means[classes])
