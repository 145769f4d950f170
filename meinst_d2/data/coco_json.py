"""The annotations of COCO instances files."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation
from meinst_d2.data.json_stream import Entry, iterate_json

SECTIONS = ("images", "annotations")
LISTS = (*SECTIONS, "categories")
LONGEST_SIDE = 2**31 - 1
"""Pixels of an image."""
NO_BOX = (0.0, 0.0, 0.0, 0.0)


def read_coco_json(*paths: str | os.PathLike[str]) -> AnnotationTable:
    """Every annotation of COCO instances files, in file order.

    Categories are numbered by rising id, as Detectron2 numbers them; an annotation of none of them has -1, one of an
    image that is not there the size (0, 0), and one whose box is no box (0, 0, 0, 0). Takes the memory of the table,
    not that of the parsed file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file is no COCO instances JSON.
    """
    table = AnnotationTable()
    for path in paths:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no annotation file {path}")
        _append(table, path)
    return table


def _append(table: AnnotationTable, path: str | os.PathLike[str]) -> None:
    start = len(table)
    sizes: dict[Any, tuple[int, int]] = {}
    image_ids, category_ids, classes, seen = [], [], [], set()
    for entry in iterate_json(path):
        seen.add(entry.section)
        if entry.index is None:
            if entry.section in LISTS and not isinstance(entry.value, list):
                raise ValueError(
                    f"{path}: {entry.section!r} is a {type(entry.value).__name__} instead of a list: it is not in "
                    "COCO's instances format"
                )
        elif entry.section == "annotations":
            annotation = require_object(entry, path)
            try:
                table.append(from_coco(annotation))
            except RecursionError:
                raise ValueError(f"{path}: number {entry.index} of 'annotations' is nested too deeply") from None
            image_ids.append(annotation.get("image_id"))
            category_ids.append(annotation.get("category_id"))
        elif entry.section == "images":
            _add_size(sizes, require_object(entry, path), f"{path}: image number {entry.index}")
        elif entry.section == "categories":
            classes.append(require_object(entry, path).get("id"))
            if not isinstance(classes[-1], (int, float, str)):
                raise ValueError(f"{path}: category number {entry.index} needs an id that is a number or a text")
    missing = [section for section in SECTIONS if section not in seen]
    if missing:
        raise ValueError(f"{path} is not in COCO's instances format: it has no {' and no '.join(map(repr, missing))}")
    numbers = {id_: i for i, id_ in enumerate(sorted(classes, key=lambda id_: (str(type(id_)), id_)))}
    table.settle(
        start,
        [_lookup(sizes, id_, (0, 0)) for id_ in image_ids],
        [_lookup(numbers, id_, -1) for id_ in category_ids],
    )


def _add_size(sizes: dict[Any, tuple[int, int]], image: Mapping[str, Any], which: str) -> None:
    try:
        height, width = int(image["height"]), int(image["width"])
        sizes[image["id"]] = (height, width)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        given = ", ".join(f"{key} {image.get(key)!r}" for key in ("id", "height", "width"))
        raise ValueError(f"{which} needs an id, a height and a width in whole pixels, it has {given}") from error
    if not (0 < height <= LONGEST_SIDE and 0 < width <= LONGEST_SIDE):
        raise ValueError(f"{which} has a height of {height} and a width of {width}: write those of the file, in pixels")


def require_object(entry: Entry, path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The value of an entry, which must be a JSON object."""
    if not isinstance(entry.value, dict):
        kind = type(entry.value).__name__
        raise ValueError(f"{path}: number {entry.index} of {entry.section!r} is a {kind} instead of an object")
    return entry.value


def _lookup(found: Mapping[Any, Any], key: Any, otherwise: Any) -> Any:
    try:
        return found.get(key, otherwise)
    except TypeError:  # a list or an object is no id
        return otherwise


def from_coco(annotation: Mapping[str, Any]) -> InstanceAnnotation:
    """An annotation of the file, of no image and no category yet."""
    area = annotation.get("area")
    return InstanceAnnotation(
        annotation.get("segmentation"),
        _box(annotation.get("bbox")),
        (0, 0),
        -1,
        bool(annotation.get("iscrowd", 0)),
        area if isinstance(area, (int, float)) and not _beyond_float(area) else None,
    )


def _box(xywh: Any) -> tuple[float, float, float, float]:
    """``xyxy``, rounded as Detectron2 rounds it."""
    if not isinstance(xywh, list) or len(xywh) != 4 or any(type(value) not in (int, float) for value in xywh):
        return NO_BOX
    if any(map(_beyond_float, xywh)):
        return NO_BOX
    with np.errstate(over="ignore", invalid="ignore"):
        box = np.array(xywh, np.float64).astype(np.float32)
        box[2:] += box[:2]
    return tuple(box.tolist())


def _beyond_float(value: float) -> bool:
    """Whether it is a whole number that no float can hold."""
    return isinstance(value, int) and abs(value) > sys.float_info.max
