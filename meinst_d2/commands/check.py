"""Say, before any training, everything about a COCO dataset that will go wrong or hurt."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meinst_d2.commands import make_parser, reporting, require_positive

if TYPE_CHECKING:
    from detectron2.config import CfgNode

EPILOG = """exit status:
  0  nothing is wrong
  1  training runs, and something hurts it: objects are left out, ignored or taught wrongly
  2  training would stop, the files cannot be read, or the command line is wrong

examples:
  meinst check mine/train.json mine/images
  meinst check mine/train.json mine/images --decode --contact-sheet sheet.png --json report.json
  meinst check mine/train.json --components output/components/mine.npz      # without opening images
  meinst check mine/train.json mine/images --augmented augmented.png --config-file mine.yaml
  meinst check mine/train.json mine/images --drop-bad mine/train_usable.json
"""
PAIRS = ("28/60", "28/100", "56/100")
LISTED = 20


def encoding(text: str) -> tuple[int, int]:
    """S/D."""
    size, _, dim = text.partition("/")
    if not (size.isdecimal() and dim.isdecimal() and 2 <= int(size) <= 128 and 1 <= int(dim) <= int(size) ** 2):
        raise argparse.ArgumentTypeError(f"{text} is not a mask size and a number of coefficients such as 28/60")
    return int(size), int(dim)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("check", __doc__, EPILOG)
    add = parser.add_argument
    add("annotations", metavar="ANNOTATIONS.json", help="COCO instances file")
    add("images", nargs="?", metavar="IMAGES", help="folder of its images (left out: none is opened)")
    add("--no-images", action="store_true", help="do not open images, even if the folder is named")
    add("--decode", action="store_true", help="read every pixel, which finds files that are cut off")
    add("--config-file", metavar="FILE", help="config that will be trained with (default: this project's defaults)")
    pairs = f"mask sizes and numbers of coefficients to compare (default: those of the config, {', '.join(PAIRS)})"
    add("--encodings", nargs="+", type=encoding, metavar="S/D", help=pairs)
    add("--no-encodings", action="store_true", help="do not measure encodings")
    add("--components", metavar="FILE", help="components of meinst fit to measure instead of fitting")
    add("--contact-sheet", metavar="PNG", help="draw sampled annotations, marking the bad ones")
    augmented = "draw training samples as the network gets them, augmented as --config-file says, with their masks"
    add("--augmented", metavar="PNG", help=augmented)
    add("--samples", type=int, default=48, metavar="N", help="of the contact sheet and of the augmented (default 48)")
    add("--json", metavar="REPORT.json", help="also write the report as JSON")
    drop = "write a copy without unusable annotations and images; OUT.dropped.csv lists them"
    add("--drop-bad", metavar="OUT.json", help=drop)
    add("--examples", type=int, default=5, metavar="N", help="of every problem (default 5)")
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)")
    args = parser.parse_args(argv)
    require_positive(parser, args, "samples", "examples", "workers")
    if args.no_encodings and (args.encodings or args.components):
        parser.error("--no-encodings leaves nothing for --encodings and --components to do")
    if args.decode and (args.no_images or args.images is None):
        parser.error("--decode needs the folder of images")
    if args.no_images:
        args.images = None
    if args.augmented and args.images is None:
        parser.error("--augmented needs the folder of images")
    return args


def load_config(config_file: str | None) -> CfgNode:
    from detectron2.config import get_cfg

    from meinst_d2 import add_meinst_config
    from meinst_d2.config_file import merge_config_file

    cfg = get_cfg()
    add_meinst_config(cfg)
    if config_file:
        merge_config_file(cfg, config_file)
    return cfg


def draw_augmented(path: str, annotations: str, images: str, cfg: CfgNode, count: int) -> None:
    """Draw the first training samples of a config on a dataset, with the seed of the config or 0."""
    import numpy as np

    from meinst_d2.data.datasets import class_names, register_coco, training_records
    from meinst_d2.data.loader import SeededMapDataset, build_mapper
    from meinst_d2.visualization.drawing import draw_samples

    name = "augmented"
    register_coco(f"{name}={annotations}:{images}")
    records = training_records((name,), filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    seed = max(cfg.SEED, 0)
    samples = SeededMapDataset(records, build_mapper(cfg, records), seed)
    order = np.random.default_rng(seed).permutation(len(records))[:count]
    drawn = [samples[int(index), position] for position, index in enumerate(order)]
    draw_samples(path, drawn, cfg.INPUT.FORMAT, class_names(name))


def check(args: argparse.Namespace) -> int:
    """Check, print, write; returns the exit status."""
    from meinst_d2.check.coco_file import require_other_file, write_without_bad
    from meinst_d2.check.contact_sheet import draw_contact_sheet
    from meinst_d2.check.coverage import settings_of
    from meinst_d2.check.report import as_content, as_text, bad_rules, examine
    from meinst_d2.encoding import load_components
    from meinst_d2.files import atomic_path, require_writable

    for path in filter(None, (args.json, args.contact_sheet, args.augmented, args.drop_bad)):
        require_writable(path)
    if args.drop_bad:
        require_other_file(args.annotations, args.drop_bad)
    cfg = load_config(args.config_file)
    own = (cfg.MODEL.MEINST.MASK_SIZE, cfg.MODEL.MEINST.DIM_MASK)
    pairs = [] if args.no_encodings else list(dict.fromkeys(args.encodings or [own, *map(encoding, PAIRS)]))
    components = load_components(args.components) if args.components else None
    refine = cfg.MODEL.MEINST.REFINE
    grids = [round(refine.OUTPUT_SIZE / refine.CONTEXT)] if refine.ENABLED else []
    options = {"grids": grids, "decode": args.decode, "num_examples": args.examples, "workers": args.workers}
    files = args.annotations, args.images
    report = examine(*files, settings_of(cfg), pairs=pairs, components=components, **options)
    print(as_text(report), flush=True)
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(as_content(report), indent=1))
        print(f"wrote {args.json}")
    if args.contact_sheet:
        draw_contact_sheet(args.contact_sheet, report.file, args.images, bad_rules(report), args.samples)
        print(f"wrote {args.contact_sheet}")
    if args.augmented:
        draw_augmented(args.augmented, args.annotations, args.images, cfg, args.samples)
        print(f"wrote {args.augmented}")
    if args.drop_bad:
        list_path, lines = write_without_bad(report.file, args.drop_bad)
        for line in lines[:LISTED]:
            print(f"{line.done}: {line.what} ({line.why})")
        if len(lines) > LISTED:
            print(f"... and {len(lines) - LISTED:,} more")
        gone = [line.section for line in lines if line.done == "left out"]
        left_out = [f"{name} left out: {gone.count(name):,}" for name in ("annotations", "images")]
        new = f"annotations with new ids: {len(lines) - len(gone):,}"
        print(f"wrote {args.drop_bad}; {', '.join([*left_out, new])}; {list_path} lists them")
    return int(report.severity)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        with reporting("check", status=2):
            sys.exit(check(args))
    except Exception:  # its status would be 1, which says something else
        traceback.print_exc()
        sys.exit(2)
