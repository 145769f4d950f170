#!/usr/bin/env python
"""Draw held-out images with their ground truth and what a trained model finds: the first pictures of README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from meinst_d2.commands import require_positive

EXAMPLES = """example (docs/real-data.md says where the images are from):
  dev/draw_model.py nuclei nuclei/val.json:nuclei/stage1_train --min-objects 41 --output docs/images/nuclei.png
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", help="a file, a URL or the name of a model in zoo/")
    add("dataset", metavar="ANNOTATIONS.json:IMAGES", help="images that it was not trained on, in COCO's format")
    add("--output", type=Path, required=True, metavar="FILE", help="the picture")
    add("--count", type=int, default=6, help="images, evenly spaced over those that have enough objects (default 6)")
    add("--min-objects", type=int, default=1, help="that are enough (default 1; above 40, nothing is labeled)")
    args = parser.parse_args(argv)
    require_positive(parser, args, "count", "min_objects")
    return args


def main() -> None:
    args = parse_args()
    # Imported here so that --help answers at once.
    import meinst_d2
    from meinst_d2.data.datasets import dataset_dicts, register_coco
    from meinst_d2.visualization.drawing import draw_sheet

    register_coco(f"drawn={args.dataset}")
    records = [record for record in dataset_dicts("drawn") if len(record["annotations"]) >= args.min_objects]
    if not records:
        sys.exit(f"draw_model.py: no image has {args.min_objects} objects: choose a smaller --min-objects")
    records = records[:: max(len(records) // args.count, 1)][: args.count]
    model = meinst_d2.load(args.weights)
    found = [model(record["file_name"]) for record in records]
    draw_sheet(args.output, records, found, "drawn")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
