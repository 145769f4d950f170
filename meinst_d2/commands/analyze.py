"""Say where a detector's mask AP is lost, and what to improve next, from its COCO results and the ground truth."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from meinst_d2.commands import make_parser, reporting, require_positive

EXAMPLES = """example (after make demo):
  meinst analyze --results output/demo/inference/coco_instances_results.json \\
      --annotations output/demo/shapes/annotations/instances_val.json --images output/demo/shapes/val \\
      --components output/demo/components.npz --output output/demo/analysis

Without --components and --weights, the encoding is fitted on the ground truth (--mask-size, --dim).
Refined masks: --weights of the model, or --context alone with --mask-size its OUTPUT_SIZE.
docs/analysis.md says how to read what it prints.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("analyze", __doc__, EXAMPLES)
    what = "coco_instances_results.json of an evaluation"
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help=what)
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="ground truth, COCO instances")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, to draw the worst ones")
    encoding = parser.add_mutually_exclusive_group()
    encoding.add_argument("--components", type=Path, metavar="FILE", help="the detector's encoding, .npz of meinst fit")
    encoding.add_argument("--weights", type=Path, metavar="FILE", help="the detector's weights, which carry it")
    parser.add_argument("--mask-size", type=int, default=28, metavar="S", help="of the fitted encoding (default 28)")
    parser.add_argument("--dim", type=int, default=60, metavar="D", help="of the fitted encoding (default 60)")
    what = "the masks are refined ones, in boxes that are X times as long (MODEL.MEINST.REFINE.CONTEXT)"
    encoding.add_argument("--context", type=float, metavar="X", help=what)
    what = "the worst images show detections above it (default 0.5)"
    parser.add_argument("--score-threshold", type=float, default=0.5, help=what)
    parser.add_argument("--worst", type=int, default=12, metavar="N", help="images to draw (default 12)")
    folder = Path("output/analysis")
    parser.add_argument("--output", type=Path, default=folder, metavar="DIR", help=f"default {folder}")
    args = parser.parse_args(argv)
    require_positive(parser, args, "mask_size", "dim", "worst")
    if args.context is not None and not args.context >= 1:
        parser.error(f"--context must be at least 1, got {args.context}")
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold must be in [0, 1], got {args.score_threshold}")
    return args


@reporting("analyze")
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported here so that --help answers at once.
    from meinst_d2.analysis import analyze, read_detections, read_truth
    from meinst_d2.analysis.inputs import encoder_of, encoder_of_checkpoint, fitted_encoder
    from meinst_d2.analysis.pictures import draw_losses_of_ap, draw_worst
    from meinst_d2.analysis.report import json_of, text_of
    from meinst_d2.encoding import MaskEncoder, PixelEncoder, load_components
    from meinst_d2.files import atomic_path, require_writable

    if args.images is not None and not args.images.is_dir():
        raise FileNotFoundError(f"--images {args.images} is not a folder")
    require_writable(args.output / "analysis.json")
    truth = read_truth(args.annotations)
    detections = read_detections(args.results, truth)
    origin = f"of {args.components or args.weights}"
    encoder: MaskEncoder
    if args.components is not None:
        components = load_components(args.components)
        encoder = encoder_of(components.bases, components.sigmoid)
    elif args.weights is not None:
        encoder, args.context = encoder_of_checkpoint(args.weights)
    elif args.context is not None:
        encoder, origin = PixelEncoder(mask_size=args.mask_size), "of pixels"
    else:
        encoder, origin = fitted_encoder(truth.annotations, args.mask_size, args.dim), "fitted on the ground truth"
    options = {"context": args.context, "score_threshold": args.score_threshold}
    analysis = analyze(truth, detections, encoder, **options)
    masks = f"encoding {origin}: S = {encoder.mask_size}, D = {encoder.dim}"
    if args.context is not None:
        masks = f"refined masks of {encoder.mask_size} x {encoder.mask_size}, boxes {args.context:g} times as long"
    encoding = {"dim": encoder.dim, "mask_size": encoder.mask_size, "origin": origin}
    content = {"results": str(args.results), "annotations": str(args.annotations), "encoding": encoding}
    with atomic_path(args.output / "analysis.json") as temporary:
        temporary.write_text(json.dumps(content | json_of(analysis), indent=1))
    draw_losses_of_ap(args.output / "losses.png", analysis)
    written = ["analysis.json", "losses.png"]
    if args.images is not None and analysis.images and analysis.images[0].total > 0:
        draw_worst(args.output / "worst.png", analysis, truth, detections, args.images, count=args.worst)
        written.append("worst.png")
    print(f"\n{len(truth.images):,} images; {masks}\n")
    print(f"wrote {', '.join(written)} into {args.output}\n")
    print(text_of(analysis))
