#!/usr/bin/env python
"""Publish a trained model: one small file with weights, components, classes, config, metrics and versions."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
EXAMPLES = """example:
  tools/publish_model.py output/demo --name shapes --output output/published

The row it prints is for MODEL_ZOO.md. The file loads with meinst_d2.model_zoo.get(FILE), or through MODEL.WEIGHTS.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of a finished run")
    parser.add_argument("--name", help="what to call the model (default: the folder's name)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default RUN_DIR)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

    # Imported here so that --help answers at once.
    from meinst_d2.publish import publish_run

    try:
        path, row = publish_run(args.run, args.output or args.run, args.name or args.run.resolve().name)
    except (ValueError, OSError) as error:
        sys.exit(f"publish_model.py: {error}")
    print(f"wrote {path}")
    print(row)


if __name__ == "__main__":
    main()
