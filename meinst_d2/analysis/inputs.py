"""Ground truth and results of COCO files, checked, image by image."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.evaluation.results import read_entries, require_known
from meinst_d2.masks import RLE
from meinst_d2.masks.rle import UnusableInstance, rle_of, runs_of

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
MAX_DETECTIONS = 100
"""Of an image, by score: COCO's limit."""
INSTANCE_KEYS = ("image_id", "category_id", "bbox", "segmentation")


@dataclass(frozen=True)
class Objects:
    """Objects of an image, in pixels.

    Attributes:
        xyxy: (n, 4).
        classes: (n,) contiguous, by rising category id.
        rles: n masks of the whole image.
    """

    xyxy: FloatArray
    classes: IntArray
    rles: Sequence[RLE]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class TruthOfImage:
    """What an image shows.

    Attributes:
        record: the image as COCO's file has it: id, file_name, height, width.
        objects: without crowd regions.
        annotations: of the objects.
        crowds: the crowd regions.
    """

    record: Mapping[str, Any]
    objects: Objects
    annotations: Sequence[InstanceAnnotation]
    crowds: Objects

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.record["height"], self.record["width"]


@dataclass(frozen=True)
class Truth:
    """An annotation file.

    Attributes:
        coco: as parsed, every annotation with ``area`` and ``iscrowd``.
        class_names: in the order of category ids.
        class_of_category: contiguous class by category id.
        images: by id, in the file's order.
    """

    coco: dict[str, Any]
    class_names: Sequence[str]
    class_of_category: Mapping[int, int]
    images: Mapping[Hashable, TruthOfImage]

    @property
    def annotations(self) -> list[InstanceAnnotation]:
        """Of all objects that are no crowd regions."""
        return [annotation for image in self.images.values() for annotation in image.annotations]


@dataclass(frozen=True)
class Detections:
    """What was found in an image, by falling score, the 100 best at most.

    Attributes:
        results: as in the file.
        objects: their boxes, classes and masks.
        scores: (n,).
    """

    results: Sequence[Mapping[str, Any]]
    objects: Objects
    scores: FloatArray


def read_truth(path: str | os.PathLike[str]) -> Truth:
    """Read a COCO instances file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such file, or has an object without a usable mask.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no annotation file {path}")
    try:
        with open(path, encoding="utf-8") as file:
            coco = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}): give a COCO instances file") from error
    sections = ("images", "annotations", "categories")
    missing = [key for key in sections if not isinstance(coco, dict) or not isinstance(coco.get(key), list)]
    if missing:
        raise ValueError(
            f"{path} is not in COCO's instances format: it has no list of {', '.join(missing)}; give the ground truth"
        )
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    class_of_category = {category["id"]: k for k, category in enumerate(categories)}
    of_image: dict[Hashable, list[dict[str, Any]]] = {record["id"]: [] for record in coco["images"]}
    for annotation in coco["annotations"]:
        absent = [key for key in INSTANCE_KEYS if key not in annotation]
        if absent:
            raise ValueError(f"{path}: annotation {annotation.get('id')} has no {', '.join(absent)}")
        if annotation["image_id"] not in of_image or annotation["category_id"] not in class_of_category:
            raise ValueError(
                f"{path}: annotation {annotation.get('id')} is of an image or a category that is not there"
            )
        of_image[annotation["image_id"]].append(annotation)
    images: dict[Hashable, TruthOfImage] = {}
    for record in coco["images"]:
        try:
            images[record["id"]] = _truth_of_image(record, of_image[record["id"]], class_of_category)
        except ValueError as error:
            raise ValueError(f"{path}, image {record['id']}: {error}") from error
    return Truth(coco, [str(category["name"]) for category in categories], class_of_category, images)


def _truth_of_image(
    record: Mapping[str, Any], annotations: Sequence[dict[str, Any]], class_of_category: Mapping[int, int]
) -> TruthOfImage:
    size = record["height"], record["width"]
    rles = []
    for annotation in annotations:
        try:
            rles.append(rle_of(annotation["segmentation"], size))
        except UnusableInstance as error:
            raise ValueError(f"annotation {annotation.get('id')} cannot be evaluated: {error.reason}") from error
        annotation.setdefault("iscrowd", 0)
        annotation.setdefault("area", float(mask_util.area(rles[-1])))
    classes = np.array([class_of_category[annotation["category_id"]] for annotation in annotations], np.int64)
    crowd = np.array([bool(annotation["iscrowd"]) for annotation in annotations], bool)
    xyxy = to_xyxy(annotations)

    def select(wanted: npt.NDArray[np.bool_]) -> Objects:
        return Objects(xyxy[wanted], classes[wanted], [rles[i] for i in wanted.nonzero()[0]])

    instances = [
        InstanceAnnotation(a["segmentation"], tuple(box.tolist()), size, int(k), False, a["area"])
        for a, box, k, is_crowd in zip(annotations, xyxy, classes, crowd, strict=True)
        if not is_crowd
    ]
    return TruthOfImage(record, select(~crowd), instances, select(crowd))


def read_results(path: str | os.PathLike[str], truth: Truth) -> dict[Hashable, Detections]:
    """Detections with masks, by the id of every image of the ground truth.

    Args:
        path: as COCOEvaluator writes it: ``{"image_id", "category_id", "bbox", "score", "segmentation"}``.
        truth: of the same images.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such file, has no masks, or belongs to other images.
    """
    entries = read_entries(path)
    require_known(path, "images", {entry["image_id"] for entry in entries}, truth.images)
    require_known(path, "categories", {entry["category_id"] for entry in entries}, truth.class_of_category)
    of_image: dict[Hashable, list[dict[str, Any]]] = {image_id: [] for image_id in truth.images}
    for i, entry in enumerate(entries):
        rle, size = entry.get("segmentation"), list(truth.images[entry["image_id"]].size)
        if not isinstance(rle, dict) or "counts" not in rle:
            raise ValueError(
                f"{path}: entry {i} has no mask, which is what is analyzed: evaluate with the task segm "
                "(MODEL.MASK_ON True)"
            )
        if rle.get("size") != size:
            raise ValueError(f"{path}: entry {i} has a mask of size {rle.get('size')} on an image of {size}")
        try:
            runs_of(rle, *size)  # compiled code would loop forever, or write beyond the mask
        except ValueError as error:
            raise ValueError(f"{path}: entry {i} has a mask that cannot be read: {error}") from error
        of_image[entry["image_id"]].append(entry)
    return {image_id: _to_detections(found, truth.class_of_category) for image_id, found in of_image.items()}


def _to_detections(entries: Sequence[dict[str, Any]], class_of_category: Mapping[int, int]) -> Detections:
    best = sorted(entries, key=lambda entry: -entry["score"])[:MAX_DETECTIONS]
    classes = np.array([class_of_category[entry["category_id"]] for entry in best], np.int64)
    objects = Objects(to_xyxy(best), classes, [entry["segmentation"] for entry in best])
    return Detections(best, objects, np.array([entry["score"] for entry in best], np.float32))


def to_xyxy(entries: Sequence[Mapping[str, Any]]) -> FloatArray:
    """(n, 4) boxes of COCO's ``bbox``."""
    boxes = np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes.astype(np.float32)
