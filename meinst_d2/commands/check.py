"""Say, before any training, everything about a COCO dataset that will go wrong or hurt."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meinst_d2.commands import make_parser, reporting

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from meinst_d2.check.scan import CocoFile

EPILOG = """exit status:
  0  nothing is wrong
  1  training runs, and something hurts it: objects are left out, ignored or taught wrongly
  2  training would stop, the files cannot be read, or the command line is wrong

examples:
  meinst check mine/train.json mine/images
  meinst check mine/train.json mine/images --decode --contact-sheet sheet.png --json report.json
  meinst check mine/train.json --components output/components/mine.npz      # without opening images
  meinst check mine/train.json mine/images --drop-bad mine/train_usable.json
"""
PAIRS = ("28/60", "28/100", "56/100")
LISTED = 20


def encoding(text: str) -> tuple[int, int]:
    """S/D."""
    size, _, dim = text.partition("/")
    if not (size.isdecimal() and dim.isdecimal() and 2 <= int(size) <= 128 and 1 <= int(dim) <= int(size) ** 2):
        raise argparse.ArgumentTypeError(f"{text} is no mask size and number of coefficients such as 28/60")
    return int(size), int(dim)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return int(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("check", __doc__, EPILOG)
    parser.add_argument("annotations", metavar="ANNOTATIONS.json", help="COCO instances file")
    parser.add_argument("images", nargs="?", metavar="IMAGES", help="folder of its images (left out: none is opened)")
    parser.add_argument("--no-images", action="store_true", help="do not open images, even if the folder is named")
    parser.add_argument("--decode", action="store_true", help="read every pixel, which finds files that are cut off")
    parser.add_argument(
        "--config-file", metavar="FILE", help="config that will be trained with (default: this project's defaults)"
    )
    parser.add_argument(
        "--encodings",
        nargs="+",
        type=encoding,
        metavar="S/D",
        help=f"mask sizes and numbers of coefficients to compare (default: those of the config, {', '.join(PAIRS)})",
    )
    parser.add_argument("--no-encodings", action="store_true", help="do not measure encodings")
    parser.add_argument("--components", metavar="FILE", help="components of meinst fit to measure instead of fitting")
    parser.add_argument("--contact-sheet", metavar="PNG", help="draw sampled annotations, marking the bad ones")
    parser.add_argument("--samples", type=positive, default=48, metavar="N", help="of the contact sheet (default 48)")
    parser.add_argument("--json", metavar="REPORT.json", help="also write the report as JSON")
    parser.add_argument(
        "--drop-bad",
        metavar="OUT.json",
        help="write a copy without unusable annotations and images; OUT.dropped.csv lists them",
    )
    parser.add_argument("--examples", type=positive, default=5, metavar="N", help="of every problem (default 5)")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes (default: one per core)"
    )
    args = parser.parse_args(argv)
    if args.no_encodings and (args.encodings or args.components):
        parser.error("--no-encodings leaves nothing for --encodings and --components to do")
    if args.decode and (args.no_images or args.images is None):
        parser.error("--decode needs the folder of images")
    if args.no_images:
        args.images = None
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


def choose_encodings(args: argparse.Namespace, cfg: CfgNode) -> list[tuple[int, int]]:
    """What is asked for; else that of the config and a few others."""
    if args.no_encodings:
        return []
    own = (cfg.MODEL.MEINST.MASK_SIZE, cfg.MODEL.MEINST.DIM_MASK)
    return list(dict.fromkeys(args.encodings or [own, *map(encoding, PAIRS)]))


def check(args: argparse.Namespace) -> int:
    """Check, print, write; returns the exit status."""
    from meinst_d2.check.contact_sheet import draw_contact_sheet
    from meinst_d2.check.coverage import settings_of
    from meinst_d2.check.doctor import examine
    from meinst_d2.check.drop import require_other_file
    from meinst_d2.check.report import as_content, as_text
    from meinst_d2.encoding import load_components
    from meinst_d2.files import atomic_path, require_writable

    for path in filter(None, (args.json, args.contact_sheet, args.drop_bad)):
        require_writable(path)
    if args.drop_bad:
        require_other_file(args.annotations, args.drop_bad)
    cfg = load_config(args.config_file)
    report = examine(
        args.annotations,
        args.images,
        settings_of(cfg),
        decode=args.decode,
        pairs=choose_encodings(args, cfg),
        components=load_components(args.components) if args.components else None,
        num_examples=args.examples,
        workers=args.workers,
    )
    print(as_text(report), flush=True)
    if args.json:
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(as_content(report), indent=1))
        print(f"wrote {args.json}")
    if args.contact_sheet:
        draw_contact_sheet(args.contact_sheet, report.file, args.images, report.bad_problems, args.samples)
        print(f"wrote {args.contact_sheet}")
    if args.drop_bad:
        drop_bad(report.file, args.drop_bad)
    return int(report.severity)


def drop_bad(file: CocoFile, path: str) -> None:
    """Write the copy, and say what it lacks."""
    from meinst_d2.check.drop import listed, write_without_bad

    dropped = write_without_bad(file, path)
    lines = listed(file, dropped)
    for _, _, what, done, why in lines[:LISTED]:
        print(f"{done}: {what} ({why})")
    if len(lines) > LISTED:
        print(f"... and {len(lines) - LISTED:,} more")
    print(
        f"wrote {Path(path)} without {int(dropped.annotations.sum()):,} annotations and "
        f"{int(dropped.images.sum()):,} images, {int(dropped.renumbered.sum()):,} annotations with new ids; "
        f"{dropped.list_path} lists them"
    )


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        with reporting("check", status=2):
            status = check(args)
    except Exception:  # its status would be 1, which says something else
        traceback.print_exc()
        status = 2
    sys.exit(status)
