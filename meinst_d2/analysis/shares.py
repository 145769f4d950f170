"""The mask error of matched detections, taken apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meinst_d2.analysis.average_precision import SIZES

AREA_LIMITS = (32**2, 96**2)  # COCO's
PARTS = ("box", "template", "coefficients", "regression")
"""Of the mask error, in the order in which an exact mask becomes the predicted one."""


@dataclass(frozen=True)
class Pairs:
    """Every detection that has an object.

    Attributes:
        areas: (n,) of the objects, in pixels.
        classes: (n,) contiguous.
        ious: (n, 4) mask IoU with the object of the stretched mask, the template, the encoding and the prediction.
    """

    areas: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    ious: npt.NDArray[np.float64]


@dataclass(frozen=True)
class MaskError:
    """Mean over some matched detections.

    Attributes:
        count: of them.
        ious: mean mask IoU of the stretched mask, the template, the encoding and the prediction; NaN without any.
    """

    count: int
    ious: tuple[float, float, float, float]

    @property
    def error(self) -> float:
        """1 - the predictions' mean IoU."""
        return 1 - self.ious[-1]

    @property
    def parts(self) -> dict[str, float]:
        """What each of ``PARTS`` adds to the error; they sum to it. A part is negative where it mends another."""
        return dict(zip(PARTS, (-np.diff((1.0, *self.ious))).tolist(), strict=True))

    @property
    def encoding(self) -> float:
        """The template's part and the coefficients': the same detections with the objects' own encoded masks."""
        return self.ious[0] - self.ious[2]

    @property
    def shares(self) -> dict[str, float]:
        """Of box, encoding and regression in the error, summing to 1; NaN where there is no error."""
        parts = {"box": self.parts["box"], "encoding": self.encoding, "regression": self.parts["regression"]}
        return {name: part / self.error if self.error > 1e-9 else math.nan for name, part in parts.items()}


def mask_error(pairs: Pairs, chosen: npt.NDArray[np.bool_] | None = None) -> MaskError:
    """The mean of all pairs, or of those chosen."""
    ious = pairs.ious if chosen is None else pairs.ious[chosen]
    mean = ious.mean(axis=0) if len(ious) else np.full(4, math.nan)
    return MaskError(len(ious), tuple(mean.tolist()))


def by_size(pairs: Pairs) -> list[MaskError]:
    """Of small, medium and large objects."""
    size = np.searchsorted(AREA_LIMITS, pairs.areas, side="right")
    return [mask_error(pairs, size == i) for i in range(len(SIZES))]


def by_class(pairs: Pairs, num_classes: int) -> list[MaskError]:
    """Of every class."""
    return [mask_error(pairs, pairs.classes == k) for k in range(num_classes)]


def join_pairs(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several images."""
    return Pairs(
        np.concatenate([np.zeros(0), *(part.areas for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.classes for part in parts)]),
        np.concatenate([np.zeros((0, 4)), *(part.ious for part in parts)]),
    )
