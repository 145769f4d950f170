"""Measure how well encodings reconstruct the masks of a dataset (figures 1 and 5 of the paper, and beyond).

Without a network: every mask is encoded, decoded and compared with itself. docs/reconstruction.md says what the
metrics are.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meinst_d2.commands import make_parser, reporting, require_positive

if TYPE_CHECKING:
    from meinst_d2.data.annotations import InstanceAnnotation
    from meinst_d2.encoding import Components
    from meinst_d2.reconstruction.encodings import Encoding, FittedDictionaries
    from meinst_d2.reconstruction.measure import Tally
    from meinst_d2.reconstruction.report import Row

FITTED = ("pca", "class-pca")
OTHERS = ("grid", "area-grid", "polar", "chebyshev")
ENCODERS = (*FITTED, "dct", *OTHERS)
PICTURED = ("area-grid", "pca", "dct", "polar", "chebyshev")
SWITCH = {"on": True, "off": False}
EXAMPLES = """examples:
  meinst reconstruct --fit-json annotations/instances_train2017.json --coco-json annotations/instances_val2017.json
  meinst reconstruct --components output/components/mine.npz --coco-json mine/val.json
  meinst reconstruct --fit-json train.json --coco-json val.json --encoders pca --sigmoid on off --whiten on off
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("reconstruct", __doc__, EXAMPLES)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--fit-json", metavar="FILE", help="COCO instances file that pca and class-pca are fitted to")
    source.add_argument("--components", metavar="FILE", help="components of meinst fit to measure instead of fitting")
    measured = "COCO instances files whose masks are measured"
    parser.add_argument("--coco-json", nargs="+", required=True, metavar="FILE", help=measured)
    which = f"of {', '.join(ENCODERS)} (default all; pca and class-pca as the other options allow)"
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, metavar="NAME", help=which)
    for name, metavar, default in (("dims", "D", (20, 40, 60, 80, 100)), ("sizes", "S", (28, 56))):
        values = f"default {' '.join(map(str, default))}"
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default, metavar=metavar, help=values)
    for name, on in (("sigmoid", "encode logits"), ("whiten", "divide coefficients by their std")):
        switch = {"choices": SWITCH, "default": ("on",), "metavar": "on/off"}
        parser.add_argument(f"--{name}", nargs="+", **switch, help=f"{on} (default on)")
    folder = Path("output/reconstruction")
    parser.add_argument("--output", type=Path, default=folder, help=f"folder (default {folder})")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N annotations of every file only")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    require_positive(parser, args, "dims", "sizes", "workers", "limit")
    if set(args.encoders or ()) & set(FITTED) and not (args.fit_json or args.components):
        parser.error("pca and class-pca need --fit-json, to be fitted to, or --components")
    args.dims, args.sizes = sorted(set(args.dims)), sorted(set(args.sizes))
    args.sigmoid, args.whiten = ([SWITCH[v] for v in dict.fromkeys(values)] for values in (args.sigmoid, args.whiten))
    return args


def read_sources(args: argparse.Namespace) -> tuple[list[InstanceAnnotation], list[InstanceAnnotation], list[str]]:
    """The annotations to fit to and to measure, their categories numbered alike, and the classes' names."""
    from meinst_d2.data.coco import read_coco

    found = [read_coco(file) for file in (*args.coco_json, *([args.fit_json] if args.fit_json else []))]
    annotations = [dataset.annotations[: args.limit] for dataset in found]
    classes = list(dict.fromkeys(name for dataset in found for name in dataset.class_names))
    number = {name: k for k, name in enumerate(classes)}
    if any(annotation.category < 0 for of_file in annotations for annotation in of_file):
        classes.append("(no category)")
    renumbered = []
    for dataset, of_file in zip(found, annotations, strict=True):
        numbers = [*(number[name] for name in dataset.class_names), len(classes) - 1]  # the last is that of -1
        renumbered.append([dataclasses.replace(a, category=numbers[a.category]) for a in of_file])
    fit_to = renumbered.pop() if args.fit_json else []
    return fit_to, [annotation for of_file in renumbered for annotation in of_file], classes


def build_encodings(
    args: argparse.Namespace, fitted: FittedDictionaries | None, components: Components | None, num_classes: int
) -> list[Encoding]:
    """Every encoding that the command line asks for, or that the other options allow."""
    from meinst_d2.reconstruction.encodings import encodings_of, make_encodings

    bases = components.bases if components is not None else ()
    possible = FITTED if fitted is not None else ("class-pca",) if len(bases) > 1 else ("pca",) if bases else ()
    families = list(dict.fromkeys(args.encoders or (*possible, "dct", *OTHERS)))
    wrong = [family for family in families if family in FITTED and family not in possible]
    if wrong:
        raise ValueError(f"{args.components} holds the dictionaries of {possible[0]}, not of {wrong[0]}")
    encodings: list[Encoding] = []
    for family in families:
        if family in FITTED and components is not None:
            encodings += encodings_of(components, args.dims, num_classes, args.whiten)
        else:
            its = fitted.bases if fitted is not None else ()
            encodings += make_encodings(family, args.sizes, args.dims, args.sigmoid, args.whiten, its)
    return encodings


def print_tables(rows: Sequence[Row], classes: Sequence[str]) -> None:
    """All masks and by size for every encoding, by class for the typical ones."""
    from meinst_d2.reconstruction.measure import SIZES
    from meinst_d2.reconstruction.report import class_table, quality_table, size_table, typical

    print(f"\n{rows[0].total.count:,} masks; each counts the same, except in the pooled mIoU, where each pixel does")
    print(quality_table(rows))
    counts = ", ".join(f"{q.count:,} {name}" for name, q in zip(SIZES, rows[0].by_size, strict=True))
    print(f"\nby size, at own resolution ({counts})")
    print(size_table(rows))
    print("\nby class, mean IoU at own resolution")
    print(class_table(typical(rows), classes))


def print_own_classes(args: argparse.Namespace, tally: Tally, rows: Sequence[Row], fitted: FittedDictionaries) -> None:
    """Class-specific against class-agnostic, on the masks of classes that have a dictionary of their own."""
    from meinst_d2.fitting.count import MASKS_PER_COMPONENT

    print(f"\npca / class-pca for classes with a dictionary of their own ({MASKS_PER_COMPONENT} masks per component)")
    print(f"{'S':>3} {'D':>4} {'classes':>8} {'masks':>7} |   IoU at S x S  | IoU at own resolution")
    place: dict[tuple[str, int | None, int], int] = {}
    for i, row in enumerate(rows):
        place.setdefault((row.encoding.family, row.encoding.mask_size, row.encoding.length), i)
    for size, dim in itertools.product(args.sizes, args.dims):
        own = list(fitted.own_classes(size, args.sigmoid[0], dim))
        both = [tally.quality(place[family, size, dim], classes=own) for family in FITTED]
        if both[0].count:
            texts = [" / ".join(f"{getattr(q, metric):.4f}" for q in both) for metric in ("template_iou", "iou")]
            print(f"{size:>3} {dim:>4} {len(own):>8} {both[0].count:>7,} | {texts[0]} | {texts[1]}")


def draw(folder: Path, rows: Sequence[Row], classes: Sequence[str]) -> list[Path]:
    """The pictures; returns their paths."""
    from meinst_d2.reconstruction import plots
    from meinst_d2.reconstruction.encodings import FAMILIES
    from meinst_d2.reconstruction.report import in_first_settings, typical

    chosen = typical(rows)
    paths = [folder / f"{name}.png" for name in ("quality", "sizes", "classes", "hollow_decay")]
    plots.draw_quality(paths[0], in_first_settings(rows))
    plots.draw_sizes(paths[1], chosen)
    plots.draw_classes(paths[2], chosen, classes)
    pictured = {row.encoding.family: row.encoding for row in chosen}
    columns = {
        f"{FAMILIES[name][0]}\n{pictured[name].length} numbers": pictured[name] for name in PICTURED if name in pictured
    }
    if not columns:
        return paths[:3]
    plots.draw_reconstructed(paths[3], plots.example_shapes(), columns)
    return paths


@reporting("reconstruct")
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    from meinst_d2.encoding import load_components
    from meinst_d2.files import atomic_path, require_writable
    from meinst_d2.reconstruction.encodings import FittedDictionaries
    from meinst_d2.reconstruction.measure import measure_encodings
    from meinst_d2.reconstruction.report import as_json, rows_of

    report = args.output / "reconstruction.json"
    require_writable(report)
    components = load_components(args.components) if args.components else None
    fit_to, annotations, classes = read_sources(args)
    fitted = None
    if args.fit_json:
        per_class = "class-pca" in (args.encoders or FITTED)
        fitted = FittedDictionaries(fit_to, len(classes), args.dims, per_class=per_class, workers=args.workers)
    encodings = build_encodings(args, fitted, components, len(classes))
    tally = measure_encodings(annotations, encodings, len(classes), args.workers)
    for reason, count in tally.skipped.most_common():
        print(f"skipped {count:,}: {reason}")
    rows = rows_of(tally, encodings, len(classes))
    if not rows[0].total.count:
        raise ValueError(
            f"none of the {len(annotations):,} annotations of {', '.join(args.coco_json)} has a usable mask"
        )
    print_tables(rows, classes)
    if fitted is not None and set(FITTED) <= {encoding.family for encoding in encodings}:
        print_own_classes(args, tally, rows, fitted)
    content = {
        "fitted_to": os.path.basename(args.fit_json or args.components or "") or None,
        "measured": [os.path.basename(file) for file in args.coco_json],
        "skipped": dict(tally.skipped),
        "encodings": as_json(rows, classes),
    }
    with atomic_path(report) as temporary:
        temporary.write_text(json.dumps(content, indent=1))
    print()
    for path in (report, *draw(args.output, rows, classes)):
        print(f"wrote {path}")
