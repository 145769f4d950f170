"""Passing over a dataset's masks with several processes: once to fit components, once to measure them."""

from __future__ import annotations

import gc
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from meinst_d2.data.instances import InstanceAnnotation, Templates, make_templates
from meinst_d2.data.rasterize import BoolArray
from meinst_d2.encoding import PCABasis, PixelMoments

CHUNK = 4096
"""Annotations rasterised at a time: large enough for the matrix products, small enough for the caches."""

T = TypeVar("T")


def count_moments(
    annotations: Sequence[InstanceAnnotation], mask_size: int, workers: int = 1, title: str = "counting masks"
) -> tuple[PixelMoments, Counter[str]]:
    """The moments of all usable masks, and how many annotations were skipped, by reason.

    Integer counts, so the result is the same for any number of workers.

    Args:
        annotations: of the dataset.
        mask_size: S.
        workers: processes.
        title: of the progress bar.
    """
    parts = run_shards(_moments_of_shard, annotations, workers, title, mask_size, chunk=CHUNK)
    moments, skipped = parts[0]
    for other, reasons in parts[1:]:
        moments.merge(other)
        skipped.update(reasons)
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
) -> list[Reconstruction]:
    """Encode and decode every usable mask with the first D components, for several D.

    Args:
        annotations: of the dataset; with several bases, with categories that number them.
        bases: one for all masks or one per class, of at least ``max(dims)`` components.
        dims: the D to measure.
        magnitude: mean logit magnitude of the clamp, or None for components of pixels: what a mask is encoded as,
            without the randomness.
        workers: processes.
    """
    parts = run_shards(
        _measure_shard, annotations, workers, "measuring    ", tuple(bases), tuple(dims), magnitude, chunk=CHUNK
    )
    iou, counts, num_masks = (sum(values[1:], start=values[0]) for values in zip(*parts, strict=True))
    foreground = counts[:, 0] / counts[:, 1]
    background = counts[:, 2] / counts[:, 3]
    pooled = (foreground + background) / 2
    return [Reconstruction(d, float(i / num_masks), float(p)) for d, i, p in zip(dims, iou, pooled, strict=True)]


def _measure_shard(
    chunks: Iterator[Sequence[InstanceAnnotation]],
    bases: tuple[PCABasis, ...],
    dims: tuple[int, ...],
    magnitude: float | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int]:
    iou = np.zeros(len(dims))
    counts = np.zeros((len(dims), 4), np.int64)  # foreground and background: intersection, union
    num_masks = 0
    for chunk in chunks:
        templates = make_templates(chunk, bases[0].mask_size)
        for basis, masks in _by_basis(chunk, templates, bases):
            num_masks += len(masks)
            for row, reconstructed in enumerate(reconstruct(masks, basis, dims, magnitude)):
                both = (masks & reconstructed).sum(axis=1)
                either = (masks | reconstructed).sum(axis=1)
                iou[row] += (both / either).sum()
                pixels = masks.size
                counts[row] += (both.sum(), either.sum(), pixels - either.sum(), pixels - both.sum())
    return iou, counts, num_masks


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


# What the forked workers see of the parent: annotations and arguments are shared, not pickled.
_shared: dict[str, Any] = {}


def run_shards(
    function: Callable[..., T],
    annotations: Sequence[InstanceAnnotation],
    workers: int,
    title: str,
    *args: Any,
    chunk: int,
) -> list[T]:
    """Call ``function(chunks, *args)`` once per worker, each on every workers-th chunk, with a progress bar.

    Args:
        function: takes an iterator over chunks of annotations, and ``args``.
        annotations: of the dataset.
        workers: processes; with one, this process does the work.
        title: of the bar.
        args: what ``function`` needs besides.
        chunk: annotations at a time.
    """
    num_chunks = -(-len(annotations) // chunk)
    workers = max(1, min(workers, num_chunks))
    with tqdm(total=len(annotations), desc=title, unit=" masks", unit_scale=True, dynamic_ncols=True) as bar:
        if workers == 1:
            return [function(_chunks(annotations, range(num_chunks), chunk, bar.update), *args)]
        context = multiprocessing.get_context("fork")
        counter = context.Value("q", 0)
        _shared.update(annotations=annotations, args=args, counter=counter)
        gc.freeze()  # the collector would touch, and so copy, every shared page in every worker
        try:
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                futures = [
                    pool.submit(_call_in_worker, function, range(first, num_chunks, workers), chunk)
                    for first in range(workers)
                ]
                pending = set(futures)
                while pending:
                    pending = wait(pending, timeout=0.2).not_done
                    bar.update(counter.value - bar.n)
                return [future.result() for future in futures]
        finally:
            gc.unfreeze()
            _shared.clear()


def _call_in_worker(function: Callable[..., T], chunks: range, chunk: int) -> T:
    counter = _shared["counter"]

    def count(done: int) -> None:
        with counter.get_lock():
            counter.value += done

    with threadpool_limits(1):  # one process per core already
        return function(_chunks(_shared["annotations"], chunks, chunk, count), *_shared["args"])


def _chunks(
    annotations: Sequence[InstanceAnnotation], chunks: range, chunk: int, count: Callable[[int], object]
) -> Iterator[Sequence[InstanceAnnotation]]:
    for number in chunks:
        part = annotations[number * chunk : (number + 1) * chunk]
        yield part
        count(len(part))
