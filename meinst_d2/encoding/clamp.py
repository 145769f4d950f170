"""The clamp that keeps the logit of a binary pixel finite.

A pixel x in {0, 1} becomes the logit of 1 - v or of v, i.e. +-ln((1 - v) / v). The clamp v is drawn per pixel as
max(high * u, low) with u uniform in [0, 1): exactly ``low`` with probability low / high, else uniform up to ``high``.
Equal bounds mean no randomness.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SigmoidClamp:
    """Bounds of the random clamp."""

    low: float = 0.01  # in (0, 0.5)
    high: float = 0.05  # in [low, 0.5)

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < 0.5:
            why = "its logit must be finite and separate the mask from the background"
            raise ValueError(f"the clamp ({self.low}, {self.high}) must satisfy 0 < low <= high < 0.5: {why}")

    @property
    def is_random(self) -> bool:
        """Whether the bounds differ."""
        return self.high > self.low

    @functools.cache  # noqa: B019  # numpy takes longer to find the nodes than a batch of masks takes to encode
    def logit_moments(self) -> tuple[float, float]:
        """Mean and variance of the logit c = ln((1 - v) / v) of the random clamp.

        The point mass at ``low`` is added to the integral over [low, high], which is smooth: 64 Gauss-Legendre
        nodes give it to machine precision.
        """
        at_low = math.log((1 - self.low) / self.low)
        if not self.is_random:
            return at_low, 0.0
        nodes, weights = np.polynomial.legendre.leggauss(64)
        # With v = e^t the integrand c(v) / high dv = c(v) v / high dt stays smooth however small ``low`` is.
        half = 0.5 * (math.log(self.high) - math.log(self.low))
        v = np.exp(half * nodes + 0.5 * (math.log(self.high) + math.log(self.low)))
        density = half * weights * v / self.high
        c = np.log((1 - v) / v)
        mass = self.low / self.high
        mean = mass * at_low + float(density @ c)
        variance = mass * (at_low - mean) ** 2 + float(density @ (c - mean) ** 2)
        return mean, variance
