"""Mask encoding with the low frequencies of the discrete cosine transform: nothing to fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meinst_d2.encoding.encoder import MASK_ENCODER_REGISTRY
from meinst_d2.encoding.linear import LinearEncoder


def low_frequencies(dim: int, mask_size: int) -> npt.NDArray[np.int64]:
    """(D, 2) vertical and horizontal frequency of the D smoothest waves: by u^2 + v^2, then by u."""
    u, v = (axis.ravel() for axis in np.indices((mask_size, mask_size)))
    order = np.lexsort((u, u**2 + v**2))[:dim]
    return np.stack((u[order], v[order]), axis=1)


def dct_rows(frequencies: npt.NDArray[np.int64], mask_size: int) -> npt.NDArray[np.float64]:
    """(D, S*S) orthonormal rows of the two-dimensional DCT-II: products of two waves cos(pi / S * k * (i + 1/2))."""
    at = np.arange(mask_size) + 0.5
    waves = np.cos(np.pi / mask_size * np.outer(np.arange(mask_size), at)) * np.sqrt(2 / mask_size)  # (S, S)
    waves[0] /= np.sqrt(2)  # a constant has twice the power of a wave
    rows: npt.NDArray[np.float64] = waves[frequencies[:, 0], :, None] * waves[frequencies[:, 1], None, :]  # (D, S, S)
    return rows.reshape(len(frequencies), -1)


@MASK_ENCODER_REGISTRY.register()
class DCTEncoder(LinearEncoder):
    """Coefficients of the D lowest frequencies.

    Whitening needs stds, and nothing is fitted: the power of a shape with a smooth outline falls with the third power
    of the frequency, so that is assumed, with the total power of an S x S mask.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Takes what :class:`~meinst_d2.encoding.linear.LinearEncoder` takes."""
        super().__init__(**kwargs)
        # On average a logit is 0 and its magnitude that of the clamp; a pixel is one half, give or take one half.
        magnitude, mean = (self.clamp.logit_moments()[0], 0.0) if self.sigmoid else (0.5, 0.5)
        frequencies = low_frequencies(self.mask_size**2, self.mask_size)  # (S*S, 2)
        power = (1 + np.hypot(*frequencies.T)) ** -3.0
        variances = (magnitude * self.mask_size) ** 2 * power / power.sum()
        rows = dct_rows(frequencies[: self.dim], self.mask_size)
        self.register_dictionary(
            torch.from_numpy(rows), torch.from_numpy(variances[: self.dim]), torch.full((self.mask_size**2,), mean)
        )
