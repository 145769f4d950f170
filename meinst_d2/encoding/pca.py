"""The principal components of a dataset's masks (paper, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meinst_d2.encoding.clamp import SigmoidClamp
from meinst_d2.encoding.moments import PixelMoments


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
