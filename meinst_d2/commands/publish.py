"""Publish a trained model: one small file with weights, components, classes, config, metrics and versions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meinst_d2.commands import make_parser, reporting

EXAMPLES = """example:
  meinst publish output/demo --name shapes --output output/published

The row it prints is for MODEL_ZOO.md. The file loads with meinst_d2.load(FILE), or through MODEL.WEIGHTS.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("publish", __doc__, EXAMPLES)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of a finished run")
    parser.add_argument("--name", help="what to call the model (default: the folder's name)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default RUN_DIR)")
    what = "of the run (default model_best.pth, or model_final.pth without one)"
    parser.add_argument("--weights", metavar="FILE_NAME", help=what)
    what = "keep 16 bits of each number: half the size, as a .safetensors"
    parser.add_argument("--half", action="store_true", help=what)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported here so that --help answers at once.
    from meinst_d2.model_zoo.publish import publish_run

    with reporting("publish"):
        name = args.name or args.run.resolve().name
        path, row, weights = publish_run(args.run, args.output or args.run, name, args.weights, half=args.half)
    print(f"wrote {path} with the weights of {weights}")
    print(row)
