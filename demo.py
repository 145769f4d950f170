#!/usr/bin/env python
"""Draw what a trained model finds in images and videos. The flags are those of Detectron2's own demo.py, and more."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

EPILOG = """examples:
  demo.py --weights output/demo/model_final.pth --input output/demo/shapes/val
  demo.py --weights shapes-1a2b3c4d.pth --input 'street/*.jpg' clip.mp4 --output output/street
  demo.py --config-file MEInst_R_50_3x --weights MEInst_R_50_3x.pth --input street.jpg --output found.png
  demo.py --config-file output/imported/config.yaml --weights output/imported/model.pth \\
      --input photos --save-json found.json --confidence-threshold 0.05

The model needs --config-file (a file, or a name in configs/) and --weights. Weights alone do where they say how they
are built: files of tools/publish_model.py and tools/import_adelaidet.py, and checkpoints beside their run's
config.yaml. A config.yaml alone does where model_final.pth is beside it. Number of classes, class names and mask
components are those of the weights.

--save-json writes COCO results with masks as RLE: image_id counts images and frames from 1, category_id counts the
model's classes from 0; file_name, category_name and (in videos) frame say the same in words. It has what is drawn:
lower --confidence-threshold to evaluate.

A file that cannot be read is reported and passed over. The exit status is 1 if none could be read.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", metavar="FILE_OR_NAME", help="of the model")
    parser.add_argument("--weights", metavar="FILE_OR_URL", help="default: MODEL.WEIGHTS of --opts, or see below")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="images, videos, folders, globs in quotation marks"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="a folder, or for one input a file (default output/found; with --save-json, by default nothing is drawn)",
    )
    parser.add_argument("--save-json", type=Path, metavar="FILE", help="write the detections as COCO results")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, metavar="SCORE", help="least score (default 0.5)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: MODEL.DEVICE, or cpu where there is no GPU)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides, at the end"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold {args.confidence_threshold:g} is no score: choose 0 to 1")
    if args.output is None and args.save_json is None:
        args.output = Path("output/found")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*|.*pkg_resources.*")
    try:
        sys.exit(run(args))
    except (ValueError, OSError) as error:
        sys.exit(f"demo.py: {error}")


def run(args: argparse.Namespace) -> int:
    # Imported here so that --help answers at once.
    from meinst_d2.files import require_writable
    from meinst_d2.model_zoo import load_trained
    from meinst_d2.visualization import Predictor, ResultFile, find_sources, plan_outputs, require_own_file, show

    sources = find_sources(args.input)
    targets = None if args.output is None else plan_outputs(sources, args.output)
    for path in (*(targets or [])[:1], *([args.save_json] if args.save_json else [])):
        require_writable(path)
    trained = load_trained(args.config_file, args.weights, args.opts, args.device)
    if args.save_json is not None:
        require_own_file(args.save_json, sources, targets or [], [trained.weights, args.config_file or trained.weights])
    print(f"{trained.weights}: {len(trained.class_names)} classes")
    for note in trained.notes:
        print(f"note: {note}")
    results = ResultFile(args.save_json, trained.class_names) if args.save_json else None
    summary = show(Predictor(trained, args.confidence_threshold), sources, targets, results)
    if results is not None and summary.num_images:
        results.write()
        print(f"wrote {args.save_json}")
    if summary.written:
        where = summary.written[0] if len(summary.written) == 1 else args.output
        print(f"wrote {where} ({len(summary.written)} of {len(sources)} inputs)")
    print(f"{summary.num_objects} objects in {summary.num_images} images")
    for problem in summary.problems:
        print(f"could not be read: {problem}", file=sys.stderr)
    return 0 if summary.num_images else 1


if __name__ == "__main__":
    main()
