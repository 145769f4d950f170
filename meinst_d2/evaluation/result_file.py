"""What was found, as a COCO result file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from meinst_d2.evaluation.coco import to_coco_results
from meinst_d2.files import atomic_path


class ResultFile:
    """Collects detections and writes them in COCO's results format.

    Every entry has ``image_id`` (images and frames are numbered from 1, in the order in which they were read),
    ``category_id`` (from 0, in the order of the model's classes), ``bbox`` (x, y, width, height), ``score``, with masks
    ``segmentation`` (a compressed RLE), and, for whoever has other numbers, ``file_name`` and ``category_name``; in
    videos also ``frame``, from 0.
    """

    def __init__(self, path: str | os.PathLike[str], class_names: Sequence[str]) -> None:
        self.path, self.class_names = Path(path), class_names
        self._entries: list[dict[str, Any]] = []
        self._num_images = 0

    def add(self, found: Instances, file: Path, frame: int | None = None) -> None:
        """One image or frame."""
        self._num_images += 1
        where = {"file_name": str(file)} if frame is None else {"file_name": str(file), "frame": frame}
        for entry in to_coco_results(found, self._num_images):
            self._entries.append({**entry, **where, "category_name": self.class_names[entry["category_id"]]})

    def write(self) -> None:
        """All of them at once, or nothing."""
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(self._entries))
