"""Take over a config and a checkpoint of the published implementation (AdelaiDet)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meinst_d2.commands import make_parser, reporting

EXAMPLES = """example:
  meinst import --config MEInst_R_50_1x.yaml --weights MEInst_R_50_1x.pth --output output/imported
  meinst train --config-file output/imported/config.yaml --eval-only MODEL.WEIGHTS output/imported/model.pth
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("import", __doc__, EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE", help="their .yaml, its _BASE_ beside it")
    parser.add_argument("--weights", required=True, metavar="FILE", help="their .pth")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="for config.yaml and model.pth")
    parser.add_argument("--components", metavar="FILE", help="components (.npz) for weights that do not carry them")
    parser.add_argument("--safetensors", action="store_true", help="also write model.safetensors")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported here so that --help answers at once.
    from meinst_d2.model_zoo.adelaidet import import_checkpoint

    with reporting("import"):
        notes = import_checkpoint(
            args.config, args.weights, args.output, components=args.components, safetensors=args.safetensors
        )
    for note in notes:
        print(note)
    config, model = args.output / "config.yaml", args.output / "model.pth"
    print(f"wrote {config} and {model}; evaluate them with")
    print(f"  meinst train --config-file {config} --eval-only MODEL.WEIGHTS {model}")
