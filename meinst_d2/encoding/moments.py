"""Streaming first and second moments of binary masks, in exact integers.

PCA needs the mean and the covariance only. For pixels that are 0 or 1, both follow from three counts: how many masks
there are, how often each pixel is set, and how often each pair of pixels is set together. Counts are integers, so the
result does not depend on the order of the masks, on how they are split over processes, or on the machine.

Symbols: n masks, S mask side, x (S*S,) a mask; the counts are n, sum x, and sum x x^T.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 8192
"""Masks per matrix product: float32 holds every integer up to 2**24, so counts below that are exact."""


class PixelMoments:
    """Count, per-pixel sum and pairwise co-occurrence of S x S masks of zeros and ones.

    The state is 8 * S**4 bytes (4.9 MB at S = 28), whatever the number of masks.

    Attributes:
        mask_size: S.
        count: n, number of masks seen.
        cooccurrence: (S*S, S*S) int64, how many masks have both pixels set.
    """

    def __init__(self, mask_size: int) -> None:
        pixels = mask_size * mask_size
        self.mask_size = mask_size
        self.count = 0
        self.cooccurrence: npt.NDArray[np.int64] = np.zeros((pixels, pixels), np.int64)

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """(S*S,) how many masks have each pixel set."""
        return self.cooccurrence.diagonal()  # x * x is x

    def update(self, masks: npt.NDArray[np.bool_] | npt.NDArray[np.uint8]) -> None:
        """Count a batch of masks.

        Args:
            masks: (M, S, S) bool, or uint8 of zeros and ones; M may be 0.

        Raises:
            ValueError: the masks are of another size, or hold other values.
        """
        size = self.mask_size
        if masks.ndim != 3 or masks.shape[1:] != (size, size):
            raise ValueError(f"expected masks of shape (M, {size}, {size}), got {masks.shape}")
        if masks.dtype != np.bool_ and masks.size and (masks.min() < 0 or masks.max() > 1):
            raise ValueError("masks must hold zeros and ones only")
        for start in range(0, len(masks), BLOCK):
            # BLAS in float32 is the fastest product that counts exactly; it may add up in any order.
            block = masks[start : start + BLOCK].reshape(-1, size * size).astype(np.float32)  # (BLOCK, S*S)
            self.cooccurrence += (block.T @ block).astype(np.int64)
            self.count += len(block)

    def merge(self, other: PixelMoments) -> None:
        """Add what another accumulator of the same mask size has counted."""
        if other.mask_size != self.mask_size:
            raise ValueError(f"cannot merge moments of mask size {other.mask_size} into {self.mask_size}")
        self.count += other.count
        self.cooccurrence += other.cooccurrence

    def counts(self) -> npt.NDArray[np.int64]:
        """(1 + S**4,) everything that was counted, in a form that can be summed over processes."""
        return np.concatenate(([self.count], self.cooccurrence.ravel()))

    @classmethod
    def from_counts(cls, mask_size: int, counts: npt.NDArray[np.int64]) -> PixelMoments:
        """The moments whose :meth:`counts` these are, or the sum of several of them."""
        moments = cls(mask_size)
        moments.count = int(counts[0])
        moments.cooccurrence = counts[1:].reshape(moments.cooccurrence.shape).copy()
        return moments

    def mean(self) -> npt.NDArray[np.float64]:
        """(S*S,) float64: how often each pixel is set."""
        return self.total / self.count

    def covariance(self) -> npt.NDArray[np.float64]:
        """(S*S, S*S) float64 sample covariance (divided by count - 1).

        sum (x - mean) (x - mean)^T is (n * cooccurrence - total total^T) / n, whose numerator is an exact integer:
        nothing cancels.

        Raises:
            ValueError: fewer than two masks.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 masks, got {self.count}")
        numerator = self.count * self.cooccurrence - np.outer(self.total, self.total)
        return numerator / (float(self.count) * (self.count - 1))
