"""Passing over a dataset's masks with several processes: what dictionaries are fitted to, of all masks or by class."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from meinst_d2.data.annotations import InstanceAnnotation, Selection
from meinst_d2.data.instances import make_templates
from meinst_d2.data.parallel import run_shards
from meinst_d2.encoding import PCABasis, PixelMoments, SigmoidClamp, fit_pca
from meinst_d2.masks.rasterize import IntArray
from meinst_d2.masks.rle import REASONS

CHUNK = 4096
"""Annotations rasterised at a time: large enough for the matrix products, small enough for the caches."""
MASKS_PER_COMPONENT = 10
"""Of a class, for a dictionary of its own."""

SumOverRanks = Callable[[IntArray], IntArray] | None
"""Adds an array up over the processes of a job that shares the annotations; None for a process alone."""


def count_moments(
    annotations: Sequence[InstanceAnnotation],
    mask_size: int,
    workers: int = 1,
    title: str = "counting masks",
    sum_over_ranks: SumOverRanks = None,
) -> tuple[PixelMoments, Counter[str]]:
    """The moments of all usable masks, and how many annotations were skipped, by reason.

    Integer counts, so the result is the same for any number of workers and of ranks.

    Args:
        annotations: of the dataset, or this rank's share of them.
        mask_size: S.
        workers: processes.
        title: of the progress bar.
        sum_over_ranks: adds up over the ranks.
    """
    moments, skipped = PixelMoments(mask_size), Counter[str]()
    for part, reasons in run_shards(_moments_of_shard, annotations, workers, title, mask_size, chunk=CHUNK):
        moments.merge(part)
        skipped.update(reasons)
    if sum_over_ranks is not None:
        counts = sum_over_ranks(np.concatenate(([skipped[reason] for reason in REASONS], moments.counts())))
        skipped = +Counter(dict(zip(REASONS, counts[: len(REASONS)].tolist(), strict=True)))
        moments = PixelMoments.from_counts(mask_size, counts[len(REASONS) :])
    return moments, skipped


def _moments_of_shard(
    chunks: Iterator[Sequence[InstanceAnnotation]], mask_size: int
) -> tuple[PixelMoments, Counter[str]]:
    moments, skipped = PixelMoments(mask_size), Counter[str]()
    for chunk in chunks:
        templates = make_templates(chunk, mask_size)
        moments.update(templates.masks)
        skipped.update(templates.skipped)
    return moments, skipped


@dataclass(frozen=True)
class ClassFit:
    """Dictionaries by class (paper, section 4.1).

    Attributes:
        every: every component of all masks.
        bases: (K,) one per class, of D components; classes with too few masks have that of all masks.
        counts: (K,) usable masks of each class.
        shared: the classes with too few masks.
        moments: of all masks.
        skipped: annotations that were not used, by reason.
    """

    every: PCABasis
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
    sum_over_ranks: SumOverRanks = None,
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
        bases.append(basis.truncated(dim) if basis and basis.dim >= dim else None)
    every = fit_all(total, skipped, dim, clamp)
    shared = [category for category, basis in enumerate(bases) if basis is None]
    return ClassFit(every, [basis or every.truncated(dim) for basis in bases], counts, shared, total, skipped)


def fit_all(moments: PixelMoments, skipped: Counter[str], dim: int, clamp: SigmoidClamp | None) -> PCABasis:
    """Every component of all masks.

    Args:
        moments: of the usable masks.
        skipped: the other annotations.
        dim: D, the fewest components.
        clamp: of the logits, or None to take the pixels themselves.

    Raises:
        ValueError: there are too few masks.
    """
    if moments.count <= dim:
        raise ValueError(
            f"{moments.count} of {moments.count + skipped.total()} annotations have a usable mask, {dim} components "
            f"need at least {dim + 1}: give more annotations or a smaller --dim"
        )
    return fit_pca(moments, clamp)
