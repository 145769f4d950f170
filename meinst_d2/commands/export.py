"""Export a model to a file that runs without this project and without Detectron2, once it detects the same."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from meinst_d2.commands import make_parser, reporting

EXAMPLES = """examples:
  meinst export --weights shapes-1a2b3c4d.pth --output model.onnx
  meinst export --config-file configs/MEInst_R_50_1x.yaml --weights output/r50/model_final.pth \\
      --output model.onnx --image street.jpg --image beach.jpg
  meinst export --format exported_program --weights shapes-1a2b3c4d.pth --output model.pt2

The file is written only if it detects in the images what the model detects: as many objects, boxes within 0.01 pixels,
scores within 1e-4, masks within 1e-3. docs/deployment.md describes inputs and outputs.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("export", __doc__, EXAMPLES)
    parser.add_argument("--config-file", help="a config, or its name; not needed where the weights have theirs")
    parser.add_argument("--weights", help="a checkpoint or URL (default: those that belong to the config)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="what to write")
    parser.add_argument("--format", choices=("onnx", "exported_program"), default="onnx", help="default onnx")
    parser.add_argument("--opset", type=int, default=20, help="of ONNX, 19 or more (default 20)")
    what = "an image to check on, with objects that the model knows; repeat for more (default: drawings of shapes)"
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help=what)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported here so that --help answers at once.
    from meinst_d2.export import CheckError, check_batches, export_model, make_source
    from meinst_d2.export.write import require_exporter
    from meinst_d2.model_zoo.trained import load_trained

    with reporting("export", CheckError, ImportError):
        require_exporter(args.format)
        source = make_source(load_trained(args.config_file, args.weights, args.opts, device="cpu"))
        for note in source.notes:
            print(f"note: {note}")
        batches = check_batches(args.image, source.metadata)
        result = export_model(source, args.output, batches, args.format, args.opset)
    print(result.table())
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
