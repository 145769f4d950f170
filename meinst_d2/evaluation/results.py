"""Files in COCO's results format: checked before anything is done with them, and written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import Instances

from meinst_d2.data.coco import is_id, listed
from meinst_d2.evaluation.coco import to_coco_results
from meinst_d2.files import atomic_path

KEYS = ("image_id", "category_id", "bbox", "score")
FARTHEST = 1e30  # which a float32 can hold


@dataclass(frozen=True)
class DetectedBoxes:
    """What a detector found in one image: (n, 4) boxes in its pixels, (n,) scores, and (n,) contiguous classes."""

    xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)


def boxes_of(entries: Sequence[Mapping[str, Any]], class_of_category: Mapping[Any, int]) -> DetectedBoxes:
    """The boxes of the entries of one image."""
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = np.array([class_of_category[entry["category_id"]] for entry in entries], np.int64)
    return DetectedBoxes(boxes.astype(np.float32), np.array([x["score"] for x in entries], np.float32), classes)


def boxes_by_image(
    path: str | os.PathLike[str], image_ids: Collection[Hashable], class_of_category: Mapping[Any, int]
) -> dict[Hashable, DetectedBoxes]:
    """The boxes of a COCO result file, of every image that has some; arguments and errors as :func:`read_results`'."""
    entries: dict[Hashable, list[dict[str, Any]]] = {}
    for entry in read_results(path, image_ids, class_of_category):
        entries.setdefault(entry["image_id"], []).append(entry)
    return {image_id: boxes_of(found, class_of_category) for image_id, found in entries.items()}


def read_results(
    path: str | os.PathLike[str], image_ids: Collection[Hashable], category_ids: Collection[Hashable]
) -> list[dict[str, Any]]:
    """The entries of a COCO result file as they are, each with usable :data:`KEYS`.

    Args:
        path: a JSON list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``.
        image_ids, category_ids: those of the dataset.

    Raises:
        ValueError: the file is not such a list, or names images or categories that the dataset does not have.
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the result file {path} does not exist: give one as COCOEvaluator writes it")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): give a COCO result file") from error
    if not isinstance(content, list):
        hint = "it is an annotation file, " if isinstance(content, dict) and "annotations" in content else ""
        fix = f"{hint}give a COCO result file such as coco_instances_results.json"
        raise ValueError(f"{path} holds a {type(content).__name__} instead of a list of detections: {fix}")
    for i, entry in enumerate(content):
        if problem := _problem_of(entry):
            raise ValueError(f"{path} is not a COCO result file: {problem} in entry {i}")
    for what, key, known in (("images", "image_id", image_ids), ("categories", "category_id", category_ids)):
        if unknown := sorted({entry[key] for entry in content} - set(known), key=str):
            has = f"boxes of {what} that the dataset does not have (ids {listed(unknown)})"
            raise ValueError(f"{path} has {has}: give a result file of the same dataset, or name its dataset")
    return content


def _problem_of(entry: Any) -> str | None:
    """What keeps an entry from being a detection."""
    if not isinstance(entry, dict):
        return f"{type(entry).__name__} instead of a detection"
    if lacking := [key for key in KEYS if key not in entry]:
        return f"no {lacking[0]!r}"
    if not is_id(entry["image_id"]) or not is_id(entry["category_id"]):
        return f"image_id {entry['image_id']!r} or category_id {entry['category_id']!r} is not an id"
    if not _is_number(entry["score"]):
        return f"score {entry['score']!r} is not a finite number"
    box = entry["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0):
        return f"bbox {box!r} is not [x, y, width, height]"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FARTHEST


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
