"""Passing over a dataset's masks with several processes: once to fit components, once to measure them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.instances import Templates, make_templates
from meinst_d2.data.parallel import run_shards
from meinst_d2.encoding import PCABasis, PixelMoments
from meinst_d2.masks.rasterize import BoolArray
from meinst_d2.masks.rle import REASONS

CHUNK = 4096
"""Annotations rasterised at a time: large enough for the matrix products, small enough for the caches."""

IntArray = npt.NDArray[np.int64]
SumOverRanks = Callable[[IntArray], IntArray]
"""Adds an array up over the processes of a job that shares the annotations."""

IOU_UNIT = 2.0**-32
"""IoU is added up in whole units of this, so that a sum does not depend on its order; 2**31 masks fit."""


def alone(counts: IntArray) -> IntArray:
    """The sum over the only process."""
    return counts


def count_moments(
    annotations: Sequence[InstanceAnnotation],
    mask_size: int,
    workers: int = 1,
    title: str = "counting masks",
    sum_over_ranks: SumOverRanks = alone,
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
    if sum_over_ranks is not alone:
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
class Reconstruction:
    """How well the first D components redraw the masks they are given.

    Attributes:
        dim: D.
        iou: mean over instances of the intersection over union at S x S.
        pooled_miou: mean of the IoU of background and of foreground, each over all pixels of all masks: the metric of
            the published tool.
    """

    dim: int
    iou: float
    pooled_miou: float


def measure_reconstruction(
    annotations: Sequence[InstanceAnnotation],
    bases: Sequence[PCABasis],
    dims: Sequence[int],
    magnitude: float | None,
    workers: int = 1,
    sum_over_ranks: SumOverRanks = alone,
) -> list[Reconstruction]:
    """Encode and decode every usable mask with the first D components, for several D.

    Args:
        annotations: of the dataset, or this rank's share of them; with several bases, with categories that number
            them.
        bases: one for all masks or one per class, of at least ``max(dims)`` components.
        dims: the D to measure.
        magnitude: mean logit magnitude of the clamp, or None for components of pixels: what a mask is encoded as,
            without the randomness.
        workers: processes.
        sum_over_ranks: adds up over the ranks.
    """
    parts = run_shards(
        _measure_shard, annotations, workers, "measuring    ", tuple(bases), tuple(dims), magnitude, chunk=CHUNK
    )
    counts = sum_over_ranks(sum(parts, np.zeros((len(dims), 6), np.int64)))  # the columns of _measure_shard
    iou = counts[:, 1] * IOU_UNIT / counts[:, 0]
    foreground, background = counts[:, 2] / counts[:, 3], counts[:, 4] / counts[:, 5]
    pooled = (foreground + background) / 2
    return [Reconstruction(d, float(i), float(p)) for d, i, p in zip(dims, iou, pooled, strict=True)]


def _measure_shard(
    chunks: Iterator[Sequence[InstanceAnnotation]],
    bases: tuple[PCABasis, ...],
    dims: tuple[int, ...],
    magnitude: float | None,
) -> IntArray:
    """For each D: masks, their IoU in units; intersection and union of foreground, then of background."""
    counts = np.zeros((len(dims), 6), np.int64)
    for chunk in chunks:
        templates = make_templates(chunk, bases[0].mask_size)
        for basis, masks in _by_basis(chunk, templates, bases):
            for row, reconstructed in enumerate(reconstruct(masks, basis, dims, magnitude)):
                both = (masks & reconstructed).sum(axis=1)
                either = (masks | reconstructed).sum(axis=1)
                iou = np.rint(both / either / IOU_UNIT).astype(np.int64).sum()
                foreground = both.sum(), either.sum()
                background = masks.size - either.sum(), masks.size - both.sum()
                counts[row] += (len(masks), iou, *foreground, *background)
    return counts


def _by_basis(
    chunk: Sequence[InstanceAnnotation], templates: Templates, bases: tuple[PCABasis, ...]
) -> Iterator[tuple[PCABasis, BoolArray]]:
    """The usable masks (M, S*S) that have a dictionary, with it."""
    masks = templates.masks.reshape(len(templates.masks), -1)
    if len(bases) == 1:
        yield bases[0], masks
        return
    categories = np.array([chunk[i].category for i in templates.kept], np.int64)
    for category in np.unique(categories[categories >= 0]):
        yield bases[category], masks[categories == category]


def reconstruct(masks: BoolArray, basis: PCABasis, dims: Sequence[int], magnitude: float | None) -> Iterator[BoolArray]:
    """Masks redrawn from their first D coefficients, for each D.

    Args:
        masks: (M, S*S).
        basis: at least ``max(dims)`` components.
        dims: the D, in any order.
        magnitude: see :func:`measure_reconstruction`.

    Yields:
        (M, S*S) for each D.
    """
    signal = masks.astype(np.float32)
    threshold = 0.5
    if magnitude is not None:
        signal = (2 * signal - 1) * np.float32(magnitude)
        threshold = 0.0
    components, mean = basis.components.astype(np.float32), basis.mean.astype(np.float32)
    coeffs = (signal - mean) @ components[: max(dims)].T
    for dim in dims:
        yield coeffs[:, :dim] @ components[:dim] + mean >= threshold
