"""Mask encoding with the principal components of a dataset's masks (paper, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meinst_d2.encoding.clamp import SigmoidClamp
from meinst_d2.encoding.encoder import MASK_ENCODER_REGISTRY, MaskEncoder
from meinst_d2.encoding.moments import PixelMoments
from meinst_d2.precision import without_autocast


@dataclass(frozen=True)
class PCABasis:
    """A fitted dictionary.

    Attributes:
        components: (D, S*S), orthonormal rows in order of falling variance.
        mean: (S*S,).
        explained_variance: (D,), the variance of the masks along each component.
        explained_variance_ratio: (D,), its share of the total variance.
    """

    components: npt.NDArray[np.floating]
    mean: npt.NDArray[np.floating]
    explained_variance: npt.NDArray[np.floating]
    explained_variance_ratio: npt.NDArray[np.floating]

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
            raise ValueError(
                f"the masks determine {self.dim} components, not {dim}: choose --dim {self.dim} or less, "
                "or give more masks"
            )
        return PCABasis(
            self.components[:dim], self.mean, self.explained_variance[:dim], self.explained_variance_ratio[:dim]
        )


def fit_pca(moments: PixelMoments, clamp: SigmoidClamp | None = SigmoidClamp()) -> PCABasis:
    """Exact PCA of all the masks that were counted, with the random clamp in closed form.

    The logit of a clamped pixel is s * c with the sign s = 2x - 1 and an independent random magnitude c. Over the
    randomness, its covariance is E[c]^2 Cov(s) + Var(c) I: the components are those of the signs, and each variance is
    scaled by E[c]^2 and raised by Var(c).

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
        magnitude, noise = clamp.logit_moments()
        scale, offset = 2 * magnitude, -magnitude
    values, vectors = np.linalg.eigh(moments.covariance())
    variances, components = np.maximum(values[::-1], 0), vectors.T[::-1]
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


@MASK_ENCODER_REGISTRY.register()
class PCAEncoder(MaskEncoder):
    """Coefficients along principal components, whitened by default.

    Buffers (float32, zero until fitted): ``components`` (D, S*S), ``explained_variances`` (D,), ``means`` (S*S,).
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
            clamp: the clamp of the logits; where it is random, every call of :meth:`encode` draws anew from torch's
                global generator in training mode, and takes the mean logit in evaluation mode.
        """
        super().__init__()
        self.dim, self.mask_size = dim, mask_size
        self.sigmoid, self.whiten, self.clamp = sigmoid, whiten, clamp
        self.register_buffer("components", torch.zeros(dim, mask_size**2))
        self.register_buffer("explained_variances", torch.zeros(dim))
        self.register_buffer("means", torch.zeros(mask_size**2))
        self._known_fitted = False

    def extra_repr(self) -> str:
        return f"dim={self.dim}, mask_size={self.mask_size}, sigmoid={self.sigmoid}, whiten={self.whiten}"

    @property
    def is_fitted(self) -> bool:
        # Once fitted always fitted: the device is asked only until then.
        if not self._known_fitted:
            self._known_fitted = bool((self.explained_variances > 0).all())
        return self._known_fitted

    def load_basis(self, basis: PCABasis) -> None:
        """Copy a dictionary of the same D and S into the buffers."""
        if (basis.dim, basis.mask_size) != (self.dim, self.mask_size):
            raise ValueError(
                f"the components have D = {basis.dim} and S = {basis.mask_size}, "
                f"the encoder needs D = {self.dim} and S = {self.mask_size}"
            )
        with torch.no_grad():
            self.components.copy_(torch.as_tensor(basis.components))
            self.explained_variances.copy_(torch.as_tensor(basis.explained_variance))
            self.means.copy_(torch.as_tensor(basis.mean))

    def encode(self, masks: Tensor) -> Tensor:
        with without_autocast(masks.device):
            pixels = self._pixel_targets(masks.flatten(1))  # (M, S*S)
            coeffs = (pixels - self.means) @ self.components.T  # (M, D)
            return coeffs / self.explained_variances.sqrt() if self.whiten else coeffs

    def _pixel_targets(self, masks: Tensor) -> Tensor:
        masks = masks.to(self.means.dtype)
        if not self.sigmoid:
            return masks
        signs = 2 * masks - 1
        if not (self.clamp.is_random and self.training):
            return signs * self.clamp.logit_moments()[0]
        v = (torch.rand_like(masks) * self.clamp.high).clamp(min=self.clamp.low)
        return signs * torch.log((1 - v) / v)

    def decode_logits(self, coeffs: Tensor) -> Tensor:
        with without_autocast(coeffs.device):
            coeffs = coeffs.to(self.means.dtype)
            if self.whiten:
                coeffs = coeffs * self.explained_variances.sqrt()
            pixels = coeffs @ self.components + self.means
            return pixels.reshape(*coeffs.shape[:-1], self.mask_size, self.mask_size)

    def decode(self, coeffs: Tensor) -> Tensor:
        pixels = self.decode_logits(coeffs)
        return pixels.sigmoid() if self.sigmoid else pixels.clamp(0.01, 0.99)
