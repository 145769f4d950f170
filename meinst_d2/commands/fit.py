"""Fit the mask components of a dataset."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import meinst_d2
from meinst_d2.commands import make_parser, reporting
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.instances import from_dataset_dicts
from meinst_d2.encoding import PCABasis, PixelMoments, SigmoidClamp, fit_pca, save_components
from meinst_d2.files import atomic_path, require_writable
from meinst_d2.fitting.count import Reconstruction, count_moments, measure_reconstruction
from meinst_d2.fitting.distributed import LostRankError, Ranks, join_ranks, ranks_of_this_machine
from meinst_d2.fitting.per_class import fit_classes

TABLE_DIMS = (20, 40, 60, 80, 100)
EXAMPLES = """examples:
  meinst fit --dataset coco_2017_train
  meinst fit --coco-json annotations/train.json --dim 40 --output output/components/mine.npz
  meinst fit --coco-json train.json --eval-json val.json --workers 8
  meinst fit --dataset coco_2017_train --class-specific
  torchrun --nproc-per-node 4 meinst fit --coco-json part1.json part2.json part3.json part4.json
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("fit", __doc__, EXAMPLES)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", nargs="+", metavar="NAME", help="datasets registered with Detectron2")
    source.add_argument("--coco-json", nargs="+", metavar="FILE", help="COCO instances files; needs no Detectron2")
    parser.add_argument("--dim", type=int, default=60, help="number of components, D (default 60)")
    parser.add_argument("--mask-size", type=int, default=28, help="side of the mask template, S (default 28)")
    parser.add_argument("--no-sigmoid", action="store_true", help="fit the pixels themselves instead of their logits")
    parser.add_argument(
        "--no-whiten", action="store_true", help="record that coefficients are not divided by their deviation"
    )
    parser.add_argument("--class-specific", action="store_true", help="fit one dictionary per class (ClassPCAEncoder)")
    parser.add_argument(
        "--min-masks",
        type=int,
        metavar="N",
        help="classes with fewer masks share the dictionary of all classes (default 10 per component)",
    )
    parser.add_argument(
        "--clamp",
        nargs=2,
        type=float,
        default=(0.01, 0.05),
        metavar=("LOW", "HIGH"),
        help="bounds of the random clamp of a pixel before its logit (default 0.01 0.05; equal: not random)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="the .npz (default output/components/DATASET_S_D.npz)"
    )
    parser.add_argument("--eval-json", metavar="FILE", help="measure on this COCO file instead of the fitted masks")
    cores = max(1, (os.cpu_count() or 1) // ranks_of_this_machine())
    parser.add_argument("--workers", type=int, default=cores, help="processes (default: one per core)")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N annotations only")
    parser.add_argument(
        "--backend", choices=("gloo", "nccl"), default="gloo", help="how ranks of torchrun add up (default gloo)"
    )
    parser.add_argument(
        "--rank-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="longest wait for another rank of torchrun (default 300)",
    )
    args = parser.parse_args(argv)
    for name in ("dim", "mask_size", "workers", "limit", "min_masks", "rank_timeout"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    try:
        args.clamp = SigmoidClamp(*args.clamp)
    except ValueError as error:
        parser.error(str(error))
    if args.output is None:
        names = args.dataset or [Path(file).stem for file in args.coco_json]
        args.output = default_output(names, args.mask_size, args.dim, args.class_specific)
    return args


def default_output(names: Sequence[str], mask_size: int, dim: int, class_specific: bool = False) -> Path:
    """Where the components of these datasets go when no one says."""
    suffix = "_per_class" if class_specific else ""
    return Path("output/components") / f"{'+'.join(names)}_{mask_size}_{dim}{suffix}.npz"


def read_annotations(args: argparse.Namespace, ranks: Ranks) -> Sequence[InstanceAnnotation]:
    """This rank's share of the annotations of the datasets named on the command line."""
    start = time.perf_counter()
    annotations: Sequence[InstanceAnnotation]
    by_file = bool(args.coco_json) and len(args.coco_json) >= ranks.size and not args.limit
    if args.coco_json:
        annotations = read_coco_json(*(ranks.share(args.coco_json) if by_file else args.coco_json))
    else:
        from meinst_d2.data.datasets import dataset_dicts

        annotations = from_dataset_dicts(record for name in args.dataset for record in dataset_dicts(name))
    if args.limit:
        annotations = annotations[: args.limit]
    print(f"read {len(annotations):,} annotations in {time.perf_counter() - start:.1f} s")
    return annotations if by_file else ranks.share_annotations(annotations)


def read_class_names(args: argparse.Namespace) -> list[str]:
    """The classes of the datasets named on the command line, which must have the same."""
    if args.coco_json:
        from meinst_d2.data.coco import read_category_names as class_names

        sources = args.coco_json
    else:
        from meinst_d2.data.datasets import class_names

        sources = args.dataset
    found = [class_names(source) for source in sources]
    for source, names in zip(sources, found, strict=True):
        if names != found[0] or not names:
            raise ValueError(
                f"--class-specific needs the same classes everywhere: {sources[0]} has {found[0]}, {source} has {names}"
            )
    return found[0]


def report_skipped(skipped: Counter[str]) -> None:
    """Say what was not used, and why."""
    for reason, count in skipped.most_common():
        print(f"skipped {count:,}: {reason}")


def print_table(basis: PCABasis, rows: Sequence[Reconstruction], measured_on: str) -> None:
    """The quality of each number of components."""
    print(f"\nreconstruction of {measured_on}")
    print(f"{'D':>5} {'variance':>9} {'IoU':>7} {'pooled mIoU':>12}")
    for row in rows:
        variance = basis.explained_variance_ratio[: row.dim].sum()
        print(f"{row.dim:>5} {variance:>8.2%} {row.iou:>7.4f} {row.pooled_miou:>12.4f}")


def draw(path: Path, basis: PCABasis, rows: Sequence[Reconstruction]) -> None:
    """A picture of the mean mask, the first 16 components and the IoU against D."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = basis.mask_size
    figure = plt.figure(figsize=(15, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1.6))
    axes = left.subplots(3, 6, gridspec_kw={"wspace": 0.05, "hspace": 0.2}).ravel()
    axes[0].imshow(basis.mean.reshape(size, size), cmap="gray")
    axes[0].set_title("mean", fontsize=9)
    for i, axis in enumerate(axes[1:]):
        if i < min(16, basis.dim):
            component = basis.components[i].reshape(size, size)
            peak = np.abs(component).max()
            axis.imshow(component, cmap="RdBu_r", vmin=-peak, vmax=peak)
            axis.set_title(f"{i + 1}: {basis.explained_variance_ratio[i]:.1%}", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    axis = right.subplots()
    dims = [row.dim for row in rows]
    axis.plot(dims, [row.iou for row in rows], "o-", label="mean IoU per instance")
    axis.plot(dims, [row.pooled_miou for row in rows], "s--", label="pooled two-class mIoU")
    axis.set_xlabel("components")
    axis.set_ylabel("reconstruction")
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def provenance(args: argparse.Namespace, num_masks: int, skipped: Counter[str]) -> dict[str, object]:
    """What the file says about itself."""
    return {
        "datasets": args.dataset or [os.path.basename(file) for file in args.coco_json],
        "num_masks": num_masks,
        "skipped": dict(skipped),
        "mask_size": args.mask_size,
        "dim": args.dim,
        "sigmoid": not args.no_sigmoid,
        "whiten": not args.no_whiten,
        "class_specific": args.class_specific,
        "clamp": None if args.no_sigmoid else [args.clamp.low, args.clamp.high],
        "versions": {
            "meinst_d2": meinst_d2.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def fit_agnostic(
    args: argparse.Namespace, annotations: Sequence[InstanceAnnotation], clamp: SigmoidClamp | None, ranks: Ranks
) -> tuple[PixelMoments, Counter[str], PCABasis, list[PCABasis]]:
    """Counts, what was skipped, every component of all masks, and the one dictionary to write."""
    moments, skipped = count_moments(annotations, args.mask_size, args.workers, sum_over_ranks=ranks.sum)
    if moments.count <= args.dim:
        report_skipped(skipped)
        raise ValueError(
            f"{moments.count} of {moments.count + skipped.total()} annotations have a usable mask, "
            f"{args.dim} components need at least {args.dim + 1}: give more annotations or a smaller --dim"
        )
    every = fit_pca(moments, clamp)
    return moments, skipped, every, [every.truncated(args.dim)]


def fit_class_specific(
    args: argparse.Namespace, annotations: Sequence[InstanceAnnotation], clamp: SigmoidClamp | None, ranks: Ranks
) -> tuple[PixelMoments, Counter[str], PCABasis, list[PCABasis]]:
    """The same with one dictionary per class to write."""
    names = args.class_names
    min_masks = args.min_masks or 10 * args.dim
    found = fit_classes(
        annotations,
        len(names),
        args.mask_size,
        args.dim,
        min_masks=min_masks,
        clamp=clamp,
        workers=args.workers,
        sum_over_ranks=ranks.sum,
    )
    if found.shared:
        few = ", ".join(f"{names[i]} ({found.counts[i]})" for i in found.shared)
        print(
            f"{len(found.shared)} of {len(names)} classes have fewer than {min_masks} usable masks and share the "
            f"dictionary of all: {few}"
        )
    return found.moments, found.skipped, fit_pca(found.moments, clamp), found.bases


def fit(args: argparse.Namespace, ranks: Ranks) -> None:
    """Read, count, fit, write, measure, draw."""
    if ranks.is_first:
        require_writable(args.output)
    if args.class_specific:
        args.class_names = read_class_names(args)
    clamp = None if args.no_sigmoid else args.clamp
    annotations = read_annotations(args, ranks)
    measured = ranks.share_annotations(read_coco_json(args.eval_json)) if args.eval_json else annotations

    start = time.perf_counter()
    fit_bases = fit_class_specific if args.class_specific else fit_agnostic
    moments, skipped, every, bases = fit_bases(args, annotations, clamp, ranks)
    report_skipped(skipped)
    print(f"fitted {args.dim} components to {moments.count:,} masks in {time.perf_counter() - start:.1f} s")
    if ranks.is_first:
        save_components(args.output, bases, provenance(args, moments.count, skipped))
        print(f"wrote {args.output}")

    longest = args.dim if args.class_specific else every.dim
    dims = sorted({dim for dim in (*TABLE_DIMS, args.dim) if dim <= longest})
    if not args.class_specific:
        bases = [every.truncated(dims[-1])]
    magnitude = clamp and clamp.logit_moments()[0]
    rows = measure_reconstruction(measured, bases, dims, magnitude, args.workers, ranks.sum)
    if ranks.is_first:
        print_table(every, rows, args.eval_json or "the fitted masks")
        picture = args.output.with_suffix(".png")
        draw(picture, every, rows)
        print(f"\nwrote {picture}")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with reporting("fit", ImportError):
        # One thread each: the same bits on any number of cores.
        try:
            with threadpool_limits(1), join_ranks(args.rank_timeout, args.backend) as ranks:
                fit(args, ranks)
        except LostRankError as error:
            print(f"meinst fit: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # leaving as usual makes torch.distributed abort while an exchange is open
