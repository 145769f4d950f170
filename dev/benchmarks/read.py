"""Reading a COCO file: the project's reader against Python's json, both into the same table, and its peak of memory."""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.annotations import write_json_of
from benchmarks.common import Goal, PeakMemory, Row, Side, alternate

if TYPE_CHECKING:
    from meinst_d2.data.annotations import AnnotationTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    parser.add_argument("--objects", type=int, default=60_000, help="of the file (default 60000: some 36 MB)")


def run(args: argparse.Namespace) -> list[Row]:
    """Time and memory."""
    import numpy as np

    from meinst_d2.data.coco import read_coco_json

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "objects.json"
        write_json_of(args.data, args.objects, path)
        megabytes = path.stat().st_size / 1e6
        with PeakMemory() as peak:
            ours = read_coco_json(path)
        theirs = read_with_json(path)
        if not (len(ours) == len(theirs) == args.objects and np.array_equal(ours.boxes, theirs.boxes)):
            raise ValueError("the two readers read different annotations")
        del ours, theirs
        sides = {"read_coco_json": lambda: read_coco_json(path), "json.load": lambda: read_with_json(path)}
        timed = alternate(sides, args.rounds)
    what = f"{args.objects:,} objects, {megabytes:.0f} MB"
    times = peak.megabytes / megabytes
    faster = Row(f"reading {what}", timed["read_coco_json"], timed["json.load"])
    return [
        dataclasses.replace(faster, goal=Goal(">= 2x", faster.ratio >= 2)),
        Row(f"peak memory, {what}", Side("of the file's size", [times]), unit="x", goal=Goal("<= 3x", times <= 3)),
    ]


def read_with_json(path: Path) -> AnnotationTable:
    """The table as a program without the reader would make it."""
    from meinst_d2.data.annotations import AnnotationTable
    from meinst_d2.data.coco import category_numbers, four_numbers, from_coco

    content = json.loads(path.read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    numbers = category_numbers(category["id"] for category in content.get("categories", ()))
    return AnnotationTable(
        from_coco(a, four_numbers(a["bbox"]), sizes.get(a["image_id"], (0, 0)), numbers.get(a["category_id"], -1))
        for a in content["annotations"]
    )
