"""Generate the shapes dataset (rings, stars, crescents, bars, cut discs, blobs) in COCO's layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from meinst_d2.commands import make_parser, reporting, require_positive

EXAMPLES = """example:
  meinst shapes --output datasets/shapes --train 3000 --val 100
  meinst train --config-file configs/demo/shapes.yaml      # with DETECTRON2_DATASETS=datasets
"""


@reporting("shapes")
def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("shapes", __doc__, EXAMPLES)
    parser.add_argument("--output", type=Path, default=Path("datasets/shapes"), help="folder (default datasets/shapes)")
    parser.add_argument("--train", type=int, default=3000, help="training images (default 3000)")
    parser.add_argument("--val", type=int, default=100, help="validation images (default 100)")
    parser.add_argument("--size", type=int, nargs=2, default=(160, 160), metavar=("H", "W"), help="of the images")
    parser.add_argument("--max-objects", type=int, default=9, help="most objects per image (default 9)")
    parser.add_argument("--min-side", type=float, default=20, help="smallest object extent in pixels (default 20)")
    parser.add_argument("--max-side", type=float, default=96, help="largest object extent in pixels (default 96)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same images (default 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    args = parser.parse_args(argv)
    require_positive(parser, args, "size", "max_objects", "min_side", "max_side", "workers")
    if args.seed < 0:
        parser.error(f"--seed must not be negative, got {args.seed}")
    if args.min_side > args.max_side:
        parser.error(f"--min-side {args.min_side:g} is above --max-side {args.max_side:g}")

    # Imported here so that --help answers at once.
    from meinst_d2.data.shapes import ShapesConfig, generate

    fewest = min(ShapesConfig.min_objects, args.max_objects)
    config = ShapesConfig(*args.size, fewest, args.max_objects, args.min_side, args.max_side)
    generate(args.output, {"train": args.train, "val": args.val}, config, args.seed, args.workers)
    print(f"wrote {args.output}")
