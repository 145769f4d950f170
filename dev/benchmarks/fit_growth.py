"""Growth of the cost of fitting with the number of masks, S and D, as a table and a plot."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.annotations import read_polygons, sample_masks, write_json_of
from benchmarks.common import ROOT, Row, Side
from benchmarks.fit import fit_masks, moments_of, quietly
from benchmarks.plots import LIMIT, draw_growth

if TYPE_CHECKING:
    from meinst_d2.data.annotations import AnnotationTable

COUNTS = (10_000, 30_000, 100_000, 300_000)
SIZES = (7, 14, 28, 42, 56)
DIMS = (20, 60, 100, 200)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, metavar="N", help="numbers of masks")
    parser.add_argument("--mask-sizes", type=int, nargs="+", default=SIZES, metavar="S", help="sides of the template")
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, metavar="D", help="numbers of components")
    parser.add_argument("--masks", type=int, default=20_000, help="where S or D grow (default 20,000)")
    parser.add_argument(
        "--plot", type=Path, default=ROOT / "docs/images/growth_fit.png", metavar="FILE", help="the plot"
    )


def run(args: argparse.Namespace) -> list[Row]:
    from threadpoolctl import threadpool_limits

    polygons = read_polygons(args.data)
    rounds = min(args.rounds, 3)
    with threadpool_limits(1):
        rows = {
            "number of masks": number_of_masks(args, rounds),
            "side of the template, S": side_of_template(polygons, args, rounds),
            "number of components, D": number_of_components(polygons, args, rounds),
        }
    draw_growth(rows, args.plot, "CPU seconds, one core", columns=3)
    return [row for panel in rows.values() for row in panel]


def seconds(function: Callable[[], Any], rounds: int) -> list[float]:
    """CPU time of each call, which other programs on the machine lengthen less than time on the clock."""
    samples = []
    for _ in range(rounds):
        start = time.process_time()
        function()
        samples.append(time.process_time() - start)
    return samples


def row(what: str, value: int, samples: Sequence[float], divisor: float = 1.0, unit: str = "s") -> Row:
    return Row(f"{what} at {value:,}", Side(what, [sample / divisor for sample in samples]), unit=unit)


def number_of_masks(args: argparse.Namespace, rounds: int) -> list[Row]:
    from meinst_d2.data.coco import read_coco_json
    from meinst_d2.encoding import fit_pca
    from meinst_d2.fitting.count import count_moments

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in args.counts:
            file = Path(folder) / "masks.json"
            write_json_of(args.data, count, file)
            parsing = seconds(lambda f=file: json.loads(f.read_text()), 1)
            reading = seconds(lambda f=file: read_coco_json(f), 1)
            annotations = read_coco_json(file)
            counting = seconds(lambda a=annotations: quietly(count_moments, a, 28), rounds)
            moments, _ = quietly(count_moments, annotations[: args.counts[0]], 28)
            rows += [
                row(f"json.load{LIMIT}", count, parsing),
                row("read the JSON", count, reading),
                row("rasterise and count", count, counting),
                row("eigendecomposition", count, seconds(lambda m=moments: fit_pca(m), rounds)),
            ]
    return rows


def side_of_template(polygons: AnnotationTable, args: argparse.Namespace, rounds: int) -> list[Row]:
    from meinst_d2.encoding import fit_pca
    from meinst_d2.fitting.count import count_moments

    rows = []
    for size in args.mask_sizes:
        masks = sample_masks(polygons, args.masks, size)
        moments = moments_of(masks)
        both = seconds(lambda s=size: quietly(count_moments, polygons, s), rounds)
        alone = seconds(lambda m=masks: moments_of(m), rounds)
        rows += [
            row("rasterise and count, per 100,000 masks", size, both, len(polygons) / 1e5),
            row("count alone, per 100,000 masks", size, alone, args.masks / 1e5),
            row("eigendecomposition", size, seconds(lambda m=moments: fit_pca(m), rounds)),
        ]
    return rows


def number_of_components(polygons: AnnotationTable, args: argparse.Namespace, rounds: int) -> list[Row]:
    import numpy as np
    from sklearn.decomposition import IncrementalPCA

    masks = sample_masks(polygons, args.masks, 28)
    pixels = masks.reshape(len(masks), -1).astype(np.float32)
    rows = []
    for dim in args.dims:
        ours = seconds(lambda d=dim: fit_masks(masks).truncated(d), rounds)
        theirs = seconds(lambda d=dim: IncrementalPCA(n_components=d, batch_size=1024).fit(pixels), 1)
        rows += [
            row(f"count and decompose {args.masks:,} masks", dim, ours),
            row(f"scikit-learn IncrementalPCA, {args.masks:,} masks", dim, theirs),
        ]
    return rows
