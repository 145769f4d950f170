"""Fitting one dictionary per class (paper, section 4.1)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from meinst_d2.data.annotations import InstanceAnnotation, Selection
from meinst_d2.encoding import PCABasis, PixelMoments, SigmoidClamp, fit_pca
from meinst_d2.fitting.count import SumOverRanks, alone, count_moments


@dataclass(frozen=True)
class ClassFit:
    """Dictionaries by class.

    Attributes:
        bases: (K,) one per class, of D components; classes with too few masks have that of all masks.
        counts: (K,) usable masks of each class.
        shared: the classes with too few masks.
        moments: of all masks.
        skipped: annotations that were not used, by reason.
    """

    bases: list[PCABasis]
    counts: list[int]
    shared: list[int]
    moments: PixelMoments
    skipped: Counter[str]


def fit_classes(
    annotations: Sequence[InstanceAnnotation],
    num_classes: int,
    mask_size: int,
    dim: int,
    *,
    min_masks: int,
    clamp: SigmoidClamp | None = SigmoidClamp(),
    workers: int = 1,
    sum_over_ranks: SumOverRanks = alone,
) -> ClassFit:
    """Fit one dictionary per class, class after class, so that the counts of only two are in memory.

    Args:
        annotations: of the dataset, or this rank's share of them, with categories in [0, K); others count for the
            dictionary of all masks only.
        num_classes: K.
        mask_size: S.
        dim: D.
        min_masks: classes with fewer usable masks share the dictionary of all masks.
        clamp: of the logits, or None to take the pixels themselves.
        workers: processes.
        sum_over_ranks: adds up over the ranks.

    Raises:
        ValueError: all masks together determine fewer than D components.
    """
    of_class: dict[int, array[int]] = {category: array("q") for category in range(num_classes)}
    others = array("q")
    for i, annotation in enumerate(annotations):
        of_class.get(annotation.category, others).append(i)

    def count(members: array[int], title: str) -> tuple[PixelMoments, Counter[str]]:
        return count_moments(Selection(annotations, members), mask_size, workers, title, sum_over_ranks)

    total, skipped = count(others, "no class")
    bases: list[PCABasis | None] = []
    counts = []
    for category, members in of_class.items():
        moments, reasons = count(members, f"class {category + 1}/{num_classes}")
        total.merge(moments)
        skipped.update(reasons)
        counts.append(moments.count)
        basis = fit_pca(moments, clamp) if moments.count >= max(min_masks, dim + 1) else None
        bases.append(basis.truncated(dim) if basis is not None and basis.dim >= dim else None)
    if total.count <= dim:
        raise ValueError(
            f"{total.count} of {total.count + skipped.total()} annotations have a usable mask, {dim} components need "
            f"at least {dim + 1}: give more annotations or a smaller --dim"
        )
    of_all = fit_pca(total, clamp).truncated(dim)
    shared = [category for category, basis in enumerate(bases) if basis is None]
    return ClassFit([basis or of_all for basis in bases], counts, shared, total, skipped)
