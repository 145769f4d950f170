"""Fitting components: rasterising, counting, eigendecomposition, processes and memory."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.annotations import CHUNK, read_polygons, sample_masks, write_json_of
from benchmarks.common import Goal, Row, Side, alternate
from benchmarks.fit_memory import memory

if TYPE_CHECKING:
    import numpy as np

    from meinst_d2.data.annotations import AnnotationTable
    from meinst_d2.encoding import PCABasis, PixelMoments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    cores = os.cpu_count() or 1
    parser.add_argument("--masks", type=int, default=100_000, help="of the fit (default 100,000)")
    parser.add_argument("--mask-size", type=int, default=28, help="S (default 28)")
    parser.add_argument("--dim", type=int, default=60, help="D (default 60)")
    parser.add_argument("--workers", type=int, default=cores, help="most processes (default: one per core)")
    parser.add_argument(
        "--memory-masks",
        type=int,
        nargs=2,
        default=(10_000, 500_000),
        metavar=("FEW", "MANY"),
        help="numbers of masks between which memory must not grow (default 10000 500000)",
    )


def run(args: argparse.Namespace) -> list[Row]:
    polygons = read_polygons(args.data)
    rows = [rasterising(polygons, args), *cropping_rles(polygons, args), against_incremental_pca(polygons, args)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "many.json"
        write_json_of(args.data, args.masks, file)
        rows += [*end_to_end(file, args), measuring(file, args)]
        rows.append(memory(args, Path(folder)))
    return rows


def rasterising(polygons: AnnotationTable, args: argparse.Namespace) -> Row:
    """All polygons in batches, against Detectron2 one by one; both use one core whatever --threads says."""
    import numpy as np
    import torch
    from detectron2.structures import PolygonMasks

    from meinst_d2.masks.rasterize import rasterize_polygons

    boxes = np.array([a.box for a in polygons], np.float32)
    parts = [a.segmentation for a in polygons]
    theirs, boxes_tensor = PolygonMasks(parts), torch.from_numpy(boxes)

    def ours() -> np.ndarray:
        starts = range(0, len(parts), CHUNK)
        return np.concatenate(
            [rasterize_polygons(parts[i : i + CHUNK], boxes[i : i + CHUNK], args.mask_size) for i in starts]
        )

    def detectron2() -> np.ndarray:
        return theirs.crop_and_resize(boxes_tensor, args.mask_size).numpy()

    sides = alternate({"rasterize_polygons": ours, "detectron2 crop_and_resize": detectron2}, args.rounds)
    differing = int((ours() != detectron2()).sum())
    row = Row(f"rasterise {len(parts):,} polygon instances", *sides.values())
    goal = Goal(">= 1.8x, identical bits", row.ratio >= 1.8 and differing == 0)
    return Row(row.what, row.ours, row.baseline, goal=goal, notes={"bits that differ": differing})


def cropping_rles(polygons: AnnotationTable, args: argparse.Namespace) -> list[Row]:
    """RLEs of the same objects, in images of their size and of three times the sides; one core."""
    import numpy as np
    import pycocotools.mask as mask_util
    import torch
    from detectron2.structures import BitMasks
    from threadpoolctl import threadpool_limits

    from meinst_d2.masks.rle import crop_rle

    rows = []
    for scale in (1, 3):
        given = []
        for annotation in polygons[:: max(1, len(polygons) // 100)]:
            height, width = (scale * side for side in annotation.image_size)
            rle = mask_util.merge(
                mask_util.frPyObjects([scale * part for part in annotation.segmentation], height, width)
            )
            given.append((rle, height, width, scale * np.array(annotation.box, np.float32)))

        def ours(given: list[Any] = given) -> np.ndarray:
            return np.stack([crop_rle(*one, args.mask_size) for one in given])

        def detectron2(given: list[Any] = given) -> np.ndarray:
            made = []
            for rle, _, _, box in given:
                masks = BitMasks(torch.from_numpy(mask_util.decode(rle))[None])
                made.append(masks.crop_and_resize(torch.from_numpy(box)[None], args.mask_size)[0].numpy())
            return np.stack(made)

        with threadpool_limits(1):
            sides = alternate({"crop_rle": ours, "decode, detectron2 crop_and_resize": detectron2}, args.rounds)
            differing = int((ours() != detectron2()).sum())
        pixels = sum(height * width for _, height, width, _ in given) / len(given)
        what = f"template of an RLE, images of {pixels / 1e6:.1f} megapixels"
        per_mask = [Side(side.name, [sample / len(given) for sample in side.samples]) for side in sides.values()]
        total = len(given) * args.mask_size**2
        rows.append(Row(what, *per_mask, notes={"bits that differ": f"{differing} of {total:,}, on the threshold"}))
    return rows


def moments_of(masks: np.ndarray) -> PixelMoments:
    """Counts of (M, S, S) masks."""
    from meinst_d2.encoding import PixelMoments

    moments = PixelMoments(masks.shape[1])
    for i in range(0, len(masks), CHUNK):
        moments.update(masks[i : i + CHUNK])
    return moments


def fit_masks(masks: np.ndarray) -> PCABasis:
    """Count and decompose, of the pixels themselves, as IncrementalPCA does."""
    from meinst_d2.encoding import fit_pca

    return fit_pca(moments_of(masks), None)


def against_incremental_pca(polygons: AnnotationTable, args: argparse.Namespace) -> Row:
    """Both sides have the rasterised masks in memory, and the threads that --threads says."""
    import numpy as np
    from sklearn.decomposition import IncrementalPCA
    from threadpoolctl import threadpool_limits

    masks = sample_masks(polygons, args.masks, args.mask_size)
    pixels = masks.reshape(len(masks), -1).astype(np.float32)
    found: dict[str, Any] = {}

    def ours(count: int) -> None:
        found["ours"] = fit_masks(masks[:count]).truncated(args.dim)

    def incremental(count: int) -> None:
        found["theirs"] = IncrementalPCA(n_components=args.dim, batch_size=1024).fit(pixels[:count])

    functions = {"PixelMoments, fit_pca": ours, "scikit-learn IncrementalPCA": incremental}
    sides = {name: Side(name, []) for name in functions}
    for number in range(1 + min(args.rounds, 3)):  # the baseline takes half a minute; a small round warms up
        for name, function in functions.items():
            with threadpool_limits(args.threads):  # also of the libraries that scikit-learn brought
                start = time.perf_counter()
                function(args.masks if number else 4 * CHUNK)
            if number:
                sides[name].samples.append(1e3 * (time.perf_counter() - start))  # type: ignore[attr-defined]
    errors = {
        "ours": reconstruction_error(pixels, found["ours"].components, found["ours"].mean),
        "IncrementalPCA": reconstruction_error(pixels, found["theirs"].components_, found["theirs"].mean_),
    }
    what = f"moments and eigendecomposition of {args.masks:,} masks, S {args.mask_size}, D {args.dim}"
    row = Row(what, *sides.values())
    goal = Goal(">= 20x, error <= its", row.ratio >= 20 and errors["ours"] <= errors["IncrementalPCA"])
    notes = {f"mean squared error, {name}": f"{error:.9f}" for name, error in errors.items()}
    return Row(what, row.ours, row.baseline, goal=goal, notes=notes)


def reconstruction_error(pixels: np.ndarray, components: np.ndarray, mean: np.ndarray) -> float:
    """Mean squared difference of a pixel from its reconstruction."""
    total = 0.0
    for i in range(0, len(pixels), CHUNK):
        centred = pixels[i : i + CHUNK] - mean
        total += float(((centred - centred @ components.T @ components) ** 2).sum())
    return total / pixels.size


def end_to_end(file: Path, args: argparse.Namespace) -> list[Row]:
    """From annotations in memory to counts, with each number of processes."""
    from threadpoolctl import threadpool_limits

    from meinst_d2.data.coco import read_coco_json
    from meinst_d2.fitting.count import count_moments

    start = cpu_seconds()
    annotations = read_coco_json(file)
    reading = 1e6 * (cpu_seconds() - start) / len(annotations)
    numbers = [2**i for i in range(args.workers.bit_length())]
    microseconds: dict[int, list[float]] = {workers: [] for workers in numbers}

    def count(workers: int) -> None:
        start = cpu_seconds()
        quietly(count_moments, annotations, args.mask_size, workers)
        microseconds[workers].append(1e6 * (cpu_seconds() - start) / len(annotations))

    with threadpool_limits(1):
        sides = alternate({str(workers): lambda w=workers: count(w) for workers in numbers}, args.rounds)
    per_mask = {workers: statistics.median(samples) for workers, samples in microseconds.items()}
    rows = [
        Row(
            "rasterise and count, CPU time per mask",
            Side("count_moments", microseconds[1][-args.rounds :]),
            unit="us",
            goal=Goal("<= 45 us", per_mask[1] <= 45),
            notes={"reading the JSON, CPU time": f"{reading:.1f} us per mask"},
        )
    ]
    for workers in numbers[1:]:
        row = Row(f"{workers} workers, {len(annotations):,} masks", sides[str(workers)], sides["1"])
        goal = Goal(f">= {0.8 * workers:g}x", row.ratio >= 0.8 * workers)
        notes = {"CPU time of all processes": f"{per_mask[workers]:.1f} us per mask, one {per_mask[1]:.1f}"}
        rows.append(
            Row(
                row.what,
                Side("count_moments", row.ours.samples),
                Side("1 worker", row.baseline.samples),
                goal=goal,
                notes=notes,
            )
        )
    return rows


def measuring(file: Path, args: argparse.Namespace) -> Row:
    """The second pass of meinst fit: every mask encoded and decoded with five numbers of components."""
    from threadpoolctl import threadpool_limits

    from meinst_d2.data.coco import read_coco_json
    from meinst_d2.encoding import fit_pca
    from meinst_d2.fitting.count import count_moments
    from meinst_d2.reconstruction.encodings import make_encodings
    from meinst_d2.reconstruction.measure import measure_encodings

    annotations = read_coco_json(file)
    samples = []
    with threadpool_limits(1):
        moments, _ = quietly(count_moments, annotations, args.mask_size)
        every = fit_pca(moments, None)
        dims = sorted({min(dim, every.dim) for dim in (20, 40, 60, 80, 100)})
        for _ in range(min(args.rounds, 3)):
            start = cpu_seconds()
            encodings = list(make_encodings("pca", [args.mask_size], dims, [False], [False], [every]))
            quietly(measure_encodings, annotations, encodings, None, templates_only=True)
            samples.append(1e6 * (cpu_seconds() - start) / len(annotations))
    side = Side("measure_encodings", samples)
    return Row("rasterise and reconstruct with 5 D, CPU time per mask", side, unit="us")


def cpu_seconds() -> float:
    """Of this process and of those that it started and that ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def quietly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call without the progress bar."""
    from contextlib import redirect_stderr

    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        return function(*args, **options)
