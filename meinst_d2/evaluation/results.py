"""Boxes from COCO result files, checked before anything is done with them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from meinst_d2.data.datasets import dataset_dicts

KEYS = ("image_id", "category_id", "bbox", "score")
NAMED_AT_MOST = 5
"""Offending ids that an error names."""


@dataclass(frozen=True)
class DetectedBoxes:
    """What a detector found in one image, in pixels of the original image.

    Attributes:
        xyxy: (n, 4) float32.
        scores: (n,) float32.
        classes: (n,) int64, contiguous.
    """

    xyxy: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)


def read_box_file(
    path: str | os.PathLike[str], image_ids: Collection[Hashable], class_of_category: Mapping[int, int]
) -> dict[Hashable, DetectedBoxes]:
    """The boxes of a COCO result file by image id, in the file's order; masks and other keys are passed over.

    Args:
        path: a JSON list of ``{"image_id", "category_id", "bbox": [x, y, width, height], "score"}``.
        image_ids: those of the dataset.
        class_of_category: contiguous class by the dataset's category id.

    Returns:
        Of every image that has boxes.

    Raises:
        ValueError: the file is no such list, or names images or categories that the dataset does not have.
        FileNotFoundError: there is no such file.
    """
    entries = read_entries(path)
    require_known(path, "images", {entry["image_id"] for entry in entries}, image_ids)
    require_known(path, "categories", {entry["category_id"] for entry in entries}, class_of_category)
    rows: dict[Hashable, list[tuple[float, ...]]] = {}
    for entry in entries:
        row = (*entry["bbox"], entry["score"], class_of_category[entry["category_id"]])
        rows.setdefault(entry["image_id"], []).append(row)
    return {image_id: _to_boxes(np.array(found, np.float64)) for image_id, found in rows.items()}


def ids_of_dataset(dataset_name: str) -> tuple[list[Hashable], dict[int, int]]:
    """The image ids of a registered dataset in its order, and the contiguous class by its category id."""
    image_ids = [record["image_id"] for record in dataset_dicts(dataset_name)]
    metadata = MetadataCatalog.get(dataset_name)
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping is None:  # not from a COCO file: Detectron2's evaluator takes the classes for category ids
        mapping = {i: i for i in range(len(metadata.thing_classes))}
    return image_ids, dict(mapping)


def read_entries(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The detections of a COCO result file as they are, each with a usable ``KEYS``.

    Raises:
        ValueError: the file is no such list.
        FileNotFoundError: there is no such file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no box file {path}: give a result file as COCOEvaluator writes it")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): give a COCO result file") from error
    if not isinstance(content, list):
        hint = "it is an annotation file, " if isinstance(content, dict) and "annotations" in content else ""
        raise ValueError(
            f"{path} holds a {type(content).__name__} instead of a list of detections: {hint}"
            "give a COCO result file such as coco_instances_results.json"
        )
    for i, entry in enumerate(content):
        problem = _problem_of(entry)
        if problem:
            raise ValueError(f"{path} is not a COCO result file: {problem} in entry {i}")
    return content


def _problem_of(entry: Any) -> str | None:
    """What keeps an entry from being a detection."""
    if not isinstance(entry, dict):
        return f"{type(entry).__name__} instead of a detection"
    for key in KEYS:
        if key not in entry:
            return f"no {key!r}"
    if not isinstance(entry["image_id"], int | str) or not isinstance(entry["category_id"], int):
        return f"image_id {entry['image_id']!r} or category_id {entry['category_id']!r} is not an id"
    if not _is_number(entry["score"]):
        return f"score {entry['score']!r} is not a finite number"
    box = entry["bbox"]
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0):
        return f"bbox {box!r} is not [x, y, width, height]"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def require_known(path: str | os.PathLike[str], what: str, found: set[Any], known: Collection[Hashable]) -> None:
    """Raise a ValueError if ids of a result file are none of the dataset's.

    Args:
        path: the result file.
        what: the ids are of, in the plural.
        found: in the file.
        known: to the dataset.
    """
    unknown = sorted(found - set(known), key=str)
    if unknown:
        named = ", ".join(map(str, unknown[:NAMED_AT_MOST]))
        more = f" and {len(unknown) - NAMED_AT_MOST} more" if len(unknown) > NAMED_AT_MOST else ""
        raise ValueError(
            f"{path} has boxes of {what} that the dataset does not have (ids {named}{more}): give a result file of "
            "the same dataset, or name its dataset"
        )


def _to_boxes(rows: np.ndarray) -> DetectedBoxes:
    """(n, 6) rows of x, y, width, height, score, class."""
    xyxy = np.concatenate((rows[:, :2], rows[:, :2] + rows[:, 2:4]), axis=1)
    return DetectedBoxes(xyxy.astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int64))
