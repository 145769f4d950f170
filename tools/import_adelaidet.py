#!/usr/bin/env python
"""Take over a config and a checkpoint of the published implementation (AdelaiDet)."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
EXAMPLES = """example:
  tools/import_adelaidet.py --config MEInst_R_50_1x.yaml --weights MEInst_R_50_1x.pth --output output/imported
  train_net.py --config-file output/imported/config.yaml --eval-only MODEL.WEIGHTS output/imported/model.pth
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="their .yaml, its _BASE_ beside it")
    parser.add_argument("--weights", required=True, metavar="FILE", help="their .pth")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="for config.yaml and model.pth")
    parser.add_argument("--components", metavar="FILE", help="components (.npz) for weights that do not carry them")
    parser.add_argument("--safetensors", action="store_true", help="also write model.safetensors")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

    # Imported here so that --help answers at once.
    from meinst_d2.importer import import_checkpoint

    try:
        notes = import_checkpoint(
            args.config, args.weights, args.output, components=args.components, safetensors=args.safetensors
        )
    except (ValueError, OSError) as error:
        sys.exit(f"import_adelaidet.py: {error}")
    for note in notes:
        print(note)
    config, model = args.output / "config.yaml", args.output / "model.pth"
    print(f"wrote {config} and {model}; evaluate them with")
    print(f"  train_net.py --config-file {config} --eval-only MODEL.WEIGHTS {model}")


if __name__ == "__main__":
    main()
