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
from meinst_d2.commands import make_parser, reporting, require_positive
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.coco import read_category_names, read_coco_json
from meinst_d2.encoding import SigmoidClamp, save_components
from meinst_d2.files import require_writable
from meinst_d2.fitting.count import MASKS_PER_COMPONENT, count_moments, fit_all, fit_classes
from meinst_d2.fitting.distributed import LostRankError, Ranks, join_ranks
from meinst_d2.fitting.report import draw, table
from meinst_d2.reconstruction.encodings import make_encodings
from meinst_d2.reconstruction.measure import measure_encodings

TABLE_DIMS = (20, 40, 60, 80, 100)
EXAMPLES = """examples:
  meinst fit --dataset coco_2017_train
  meinst fit --coco-json annotations/train.json --dim 40 --output output/components/mine.npz
  meinst fit --coco-json train.json --eval-json val.json --workers 8
  meinst fit --dataset coco_2017_train --class-specific
  torchrun --nproc-per-node 4 fit_pca.py --coco-json part1.json part2.json part3.json part4.json
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("fit", __doc__, EXAMPLES)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", nargs="+", metavar="NAME", help="datasets registered with Detectron2")
    source.add_argument("--coco-json", nargs="+", metavar="FILE", help="COCO instances files; needs no Detectron2")
    add("--dim", type=int, default=60, help="number of components, D (default 60)")
    add("--mask-size", type=int, default=28, help="side of the mask template, S (default 28)")
    add("--no-sigmoid", action="store_true", help="fit the pixels themselves instead of their logits")
    add("--no-whiten", action="store_true", help="record that coefficients are not divided by their std")
    add("--class-specific", action="store_true", help="fit one dictionary per class (ClassPCAEncoder)")
    few = f"classes with fewer masks share the dictionary of all (default {MASKS_PER_COMPONENT} per component)"
    add("--min-masks", type=int, metavar="N", help=few)
    clamp = "bounds of the random clamp of a pixel before its logit (default 0.01 0.05; equal: not random)"
    add("--clamp", nargs=2, type=float, default=(0.01, 0.05), metavar=("LOW", "HIGH"), help=clamp)
    add("--output", type=Path, metavar="FILE", help="the .npz (default output/components/DATASET_S_D.npz)")
    add("--eval-json", metavar="FILE", help="measure on this COCO file instead of the fitted masks")
    cores = max(1, (os.cpu_count() or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))))  # of each rank
    add("--workers", type=int, default=cores, help="processes (default: one per core)")
    add("--limit", type=int, metavar="N", help="use the first N annotations only")
    add("--backend", choices=("gloo", "nccl"), default="gloo", help="how ranks of torchrun add up (default gloo)")
    add("--rank-timeout", type=float, default=300, metavar="SECONDS", help="longest wait for a rank (default 300)")
    args = parser.parse_args(argv)
    require_positive(parser, args, "dim", "mask_size", "workers", "limit", "min_masks", "rank_timeout")
    try:
        args.clamp = SigmoidClamp(*args.clamp)
    except ValueError as error:
        parser.error(str(error))
    if args.output is None:
        names = "+".join(args.dataset or [Path(file).stem for file in args.coco_json])
        suffix = "_per_class" if args.class_specific else ""
        args.output = Path("output/components") / f"{names}_{args.mask_size}_{args.dim}{suffix}.npz"
    return args


def read_annotations(args: argparse.Namespace, ranks: Ranks) -> Sequence[InstanceAnnotation]:
    """This rank's share of the annotations of the datasets named on the command line."""
    start = time.perf_counter()
    annotations: Sequence[InstanceAnnotation]
    by_file = bool(args.coco_json) and len(args.coco_json) >= ranks.size and not args.limit
    if args.coco_json:
        annotations = read_coco_json(*args.coco_json[ranks.rank :: ranks.size] if by_file else args.coco_json)
    else:
        from meinst_d2.data.datasets import dataset_dicts
        from meinst_d2.data.instances import from_dataset_dicts

        annotations = from_dataset_dicts(record for name in args.dataset for record in dataset_dicts(name))
    if args.limit:
        annotations = annotations[: args.limit]
    print(f"read {len(annotations):,} annotations in {time.perf_counter() - start:.1f} s")
    return annotations if by_file else ranks.share(annotations)


def read_class_names(args: argparse.Namespace) -> list[str]:
    """The classes of the datasets named on the command line, which must have the same."""
    if args.coco_json:
        found = {file: read_category_names(file) for file in args.coco_json}
    else:
        from meinst_d2.data.datasets import class_names

        found = {name: class_names(name) for name in args.dataset}
    first, names = next(iter(found.items()))
    for other, its_names in found.items():
        if its_names != names or not names:
            raise ValueError(
                f"--class-specific needs the same classes everywhere: {first} has {names}, {other} has {its_names}"
            )
    return names


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
        "versions": {"meinst_d2": meinst_d2.__version__, "numpy": np.__version__, "python": platform.python_version()},
    }


def fit(args: argparse.Namespace, ranks: Ranks) -> None:
    """Read, count, fit, write, measure, draw."""
    if ranks.rank == 0:
        require_writable(args.output)
    names = read_class_names(args) if args.class_specific else None
    clamp = None if args.no_sigmoid else args.clamp
    annotations = read_annotations(args, ranks)
    measured = ranks.share(read_coco_json(args.eval_json)) if args.eval_json else annotations

    start = time.perf_counter()
    if names is None:
        moments, skipped = count_moments(annotations, args.mask_size, args.workers, sum_over_ranks=ranks.sum)
    else:
        least = max(args.min_masks or MASKS_PER_COMPONENT * args.dim, args.dim + 1)
        options = {"min_masks": least, "clamp": clamp, "workers": args.workers, "sum_over_ranks": ranks.sum}
        found = fit_classes(annotations, len(names), args.mask_size, args.dim, **options)
        moments, skipped = found.moments, found.skipped
        if found.shared:
            few = ", ".join(f"{names[i]} ({found.counts[i]})" for i in found.shared)
            why = f"have fewer than {least} usable masks, or masks too much alike"
            print(f"{len(found.shared)} of {len(names)} classes {why}, and share the dictionary of all: {few}")
    for reason, count in skipped.most_common():
        print(f"skipped {count:,}: {reason}")
    every = fit_all(moments, skipped, args.dim, clamp) if names is None else found.every
    written = [every.truncated(args.dim)] if names is None else found.bases
    print(f"fitted {args.dim} components to {moments.count:,} masks in {time.perf_counter() - start:.1f} s")
    if ranks.rank == 0:
        save_components(args.output, written, provenance(args, moments.count, skipped))
        print(f"wrote {args.output}")

    bases = [every] if names is None else written
    dims = sorted({dim for dim in (*TABLE_DIMS, args.dim) if dim <= bases[0].dim})
    settings = [args.mask_size], dims, [not args.no_sigmoid], [False], bases, args.clamp
    encodings = list(make_encodings("class-pca" if names else "pca", *settings))
    tally = measure_encodings(measured, encodings, len(bases) if names else None, args.workers, templates_only=True)
    tally.sums = ranks.sum(tally.sums)
    rows = [(dim, (q := tally.quality(i)).template_iou, q.pooled_miou) for i, dim in enumerate(dims)]
    if ranks.rank == 0:
        print(f"\nreconstruction of {args.eval_json or 'the fitted masks'}\n{table(every, rows)}")
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
