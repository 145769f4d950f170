"""Where the annotations and images of the benchmarks come from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

GENERATED = ROOT / "output/benchmark/shapes"


@dataclass(frozen=True)
class Source:
    """Images with annotations in COCO's format.

    Attributes:
        json_file: the annotations.
        images: the folder.
        label: what it is, for titles.
    """

    json_file: Path
    images: Path
    label: str

    def load(self) -> dict[str, Any]:
        """The parsed annotation file."""
        return json.loads(self.json_file.read_text())


def find_source(data: Path | None, split: str = "val") -> Source:
    """The COCO subset below ``data``, or generated shapes.

    Args:
        data: folder with coco/ in COCO's layout; None looks for ../shared/data beside the repository.
        split: "train" or "val".

    Raises:
        FileNotFoundError: ``data`` was given and has no coco/.
    """
    folder = ROOT.parent / "shared/data" if data is None else data
    json_file = folder / f"coco/annotations/instances_{split}2017.json"
    if json_file.is_file():
        return Source(json_file, folder / f"coco/{split}2017", f"COCO {split}2017 subset")
    if data is not None:
        raise FileNotFoundError(f"there is no {json_file}: give --data a folder with coco/ in COCO's layout")
    json_file = GENERATED / f"annotations/instances_{split}.json"
    if not json_file.is_file():
        from meinst_d2.data.shapes import ShapesConfig, generate

        config = ShapesConfig(height=480, width=640, max_objects=20, max_side=300)
        generate(GENERATED, {"train": 80, "val": 80}, config)
    return Source(json_file, GENERATED / split, "generated shapes")
