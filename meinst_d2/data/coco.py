"""The reader of COCO instances files: for fitting, checking, evaluation and analysis alike.

msgspec splits a mapped file into its elements without copying them; each is parsed when it is looked at, and gone
afterwards. What stays is a table of arrays, see :mod:`~meinst_d2.data.annotations`.

Categories are numbered as Detectron2's ``load_coco_json`` numbers them: by rising id, whatever their order in the file.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation

LONGEST_SIDE = 2**31 - 1
"""Pixels of an image."""
NO_BOX = (0.0, 0.0, 0.0, 0.0)
NOT_NUMBERS = array("d", [math.nan] * 4)
NUMBERS = frozenset((int, float))
"""The types of JSON numbers; a boolean is not one."""
LISTS = ("images", "annotations", "categories")
PYTHON_ONLY = re.compile(rb"(?<=[\s,:\[])(?:NaN|-?Infinity)(?=[\s,\]}])|\\u[dD][0-9a-fA-F]{3}")
"""What Python's json reads and the JSON standard does not know: these words, and halves of characters."""
KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def kind_of(value: Any) -> str:
    """What a JSON value is, for errors."""
    return KINDS.get(type(value), "a number")


def listed(names: Sequence[Any], most: int = 5) -> str:
    """The first names for a sentence, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def read_sections(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of the outermost object of a COCO file, in order, as texts that are not parsed yet.

    Returns:
        A list of ``msgspec.Raw`` for ``images``, ``annotations`` and ``categories`` where they are there, one for every
        other key. Of a key that comes twice the last one counts, as for Python's json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a JSON object, or one of the three is not a list.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"the annotation file {path} does not exist")
    if not os.path.getsize(path):
        raise ValueError(f"{path} is empty: it is not in COCO's instances format")
    with open(path, "rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # stays while texts are in use
    if content[:3].tobytes() == b"\xef\xbb\xbf":  # the byte order mark
        content = content[3:]
    try:
        try:
            sections = _split(content)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:  # split what has the same length, and is JSON by the standard
            plain = PYTHON_ONLY.sub(lambda word: rb"\u0041" if word[0][:1] == b"\\" else b"1" * len(word[0]), content)
            sections = _split(plain, content)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} is not in COCO's instances format: it is not a JSON object ({error})") from error
    except RecursionError:
        raise ValueError(f"{path} is not readable JSON: it is nested too deeply") from None
    except msgspec.DecodeError as error:
        reason = str(error).removeprefix("JSON is malformed: ")
        if "truncated" in reason:
            reason = f"it is cut off (after {len(content):,} bytes)"
        raise ValueError(f"{path} is not readable JSON: {reason}") from error
    for name in LISTS:
        if not isinstance(sections.get(name, []), list):
            start = bytes(memoryview(sections[name])[:1])
            kind = kind_of({b"{": {}, b'"': "", b"n": None, b"t": True, b"f": False}.get(start, 0))
            raise ValueError(f"{path}: {name!r} is {kind} instead of a list: it is not in COCO's instances format")
    return sections


def _split(text: Any, original: memoryview | None = None) -> dict[str, Any]:
    """The texts of the values; with ``original`` those that it has at the same places."""

    def found(raw: msgspec.Raw) -> msgspec.Raw:
        if original is None:
            return raw
        start, first = (np.frombuffer(buffer, np.uint8).ctypes.data for buffer in (raw, text))
        return msgspec.Raw(original[start - first :][: len(memoryview(raw))])

    sections: dict[str, Any] = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    for name, section in sections.items():
        if name in LISTS and bytes(memoryview(section)[:1]) == b"[":
            sections[name] = list(map(found, msgspec.json.decode(section, type=list[msgspec.Raw])))
        else:
            sections[name] = found(section)
    return sections


def elements(sections: Mapping[str, Any], name: str, path: str | os.PathLike[str]) -> Iterator[Any]:
    """The elements of one of the three lists, each parsed when its turn comes, and gone afterwards.

    Raises:
        ValueError: one is not readable; the sentence names it.
    """
    for number, text in enumerate(sections.get(name, ())):
        try:
            yield msgspec.json.decode(text)
        except RecursionError:
            raise ValueError(f"{path}: number {number} of {name!r} is nested too deeply") from None
        except msgspec.DecodeError:  # NaN, or numbers that no float holds, which Python takes for infinite
            try:
                yield json.loads(bytes(text))
            except ValueError as error:
                raise ValueError(f"{path}: number {number} of {name!r} is not readable JSON ({error})") from error


@dataclass(frozen=True)
class CocoDataset:
    """An annotation file."""

    path: str
    images: list[dict[str, Any]]  # ``id``, ``height``, ``width`` and, where the file has it, ``file_name``
    category_ids: list[Any]  # (K,) in the order of Detectron2's class numbers
    class_names: list[str]  # (K,)
    annotations: AnnotationTable  # (M,) ``category`` is the class number or -1; ``image_size`` is (0, 0) of no image
    boxes_xywh: npt.NDArray[np.float64]  # (M, 4) as the file has them; NaN where they are missing or not four numbers
    annotation_ids: list[Any]  # as the file has them
    image_rows: npt.NDArray[np.int64]  # (M,) the number of each annotation's image in ``images``, or -1

    def name_of(self, row: int) -> str:
        """An annotation, for errors: its file, number and id."""
        return f"{self.path}: annotation number {row} (id {self.annotation_ids[row]!r})"


def read_coco(path: str | os.PathLike[str]) -> CocoDataset:
    """Read a COCO instances file.

    Annotations of images or categories that are not there are kept, see :class:`CocoDataset`; a box that is missing or
    not four numbers is (0, 0, 0, 0).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not a COCO instances JSON; the sentence names the place.
    """
    return _read(path, AnnotationTable(), named=True)


def read_coco_json(*paths: str | os.PathLike[str]) -> AnnotationTable:
    """Every annotation of COCO instances files, in file order, as :func:`read_coco` reads them.

    The categories of each file are numbered by themselves, and need no names.
    """
    table = AnnotationTable()
    for path in paths:
        _read(path, table, named=False)
    return table


def read_category_names(path: str | os.PathLike[str]) -> list[str]:
    """The class names of a COCO file in the order of Detectron2's class numbers; annotations are not parsed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file has no readable ``categories``, or one without a name.
    """
    sections = read_sections(path)
    _require(sections, ("categories",), path)
    return _categories(sections, path, True)[1]


def _read(path: str | os.PathLike[str], table: AnnotationTable, *, named: bool) -> CocoDataset:
    sections = read_sections(path)
    _require(sections, ("images", "annotations"), path)
    images, rows, sizes = [], {}, [(0, 0)]  # the first of no image
    for number, image in enumerate(elements(sections, "images", path)):
        if fault := image_fault(image):
            raise ValueError(f"{path}: image number {number} {fault}")
        rows[image["id"]] = number
        sizes.append((int(image["height"]), int(image["width"])))
        name = {"file_name": image["file_name"]} if isinstance(image.get("file_name"), str) else {}
        images.append({"id": image["id"], "height": sizes[-1][0], "width": sizes[-1][1], **name})
    category_ids, names = _categories(sections, path, named)
    numbers = category_numbers(category_ids)
    image_rows, boxes, ids = array("q"), array("d"), []
    for number, annotation in enumerate(elements(sections, "annotations", path)):
        if not isinstance(annotation, dict):
            raise ValueError(f"{path}: annotation number {number} is {kind_of(annotation)} instead of an object")
        image_rows.append(lookup(rows, annotation.get("image_id")))
        category = lookup(numbers, annotation.get("category_id"))
        box = four_numbers(annotation.get("bbox"))
        table.append(from_coco(annotation, box, sizes[image_rows[-1] + 1], category))
        boxes.extend(box)
        ids.append(annotation.get("id"))
    boxes_xywh, of_image = np.array(boxes, np.float64).reshape(-1, 4), np.array(image_rows, np.int64)
    return CocoDataset(os.fspath(path), images, category_ids, names, table, boxes_xywh, ids, of_image)


def _require(sections: Mapping[str, Any], names: Sequence[str], path: str | os.PathLike[str]) -> None:
    if missing := [repr(name) for name in names if name not in sections]:
        raise ValueError(f"{path} is not in COCO's instances format: it has no {' and no '.join(missing)}")


def _categories(sections: Mapping[str, Any], path: str | os.PathLike[str], named: bool) -> tuple[list[Any], list[str]]:
    """The ids and the names, by class number; with ``named`` every category must have a name."""
    every = []
    for number, category in enumerate(elements(sections, "categories", path)):
        if fault := category_fault(category, named=named):
            raise ValueError(f"{path}: category number {number} {fault}")
        every.append((category["id"], str(category.get("name"))))
    try:
        category_numbers(id_ for id_, _ in every)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    every.sort(key=lambda category: category[0])
    return [id_ for id_, _ in every], [name for _, name in every]


def category_numbers(ids: Iterable[Any]) -> dict[Any, int]:
    """The class number of every category id, as Detectron2 numbers them: by rising id, the last of equal ones.

    Raises:
        ValueError: ids of types that have no common order, such as 1 and "2".
    """
    try:
        return {id_: number for number, id_ in enumerate(sorted(ids))}
    except TypeError as error:
        why = f"types that cannot be sorted ({error})"
        raise ValueError(f"the category ids are of {why}: use numbers, or strings, for all") from error


def lookup(rows: Mapping[Any, int], key: Any) -> int:
    """What an id stands for, -1 where it is none of those known, or not an id."""
    return rows.get(key, -1) if is_id(key) else -1


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id."""
    return isinstance(value, (int, float, str))


def is_side(value: Any) -> bool:
    """Whether a JSON value can be the height or the width of an image."""
    return type(value) in NUMBERS and 0 < value <= LONGEST_SIDE and value == int(value)


def image_fault(image: Any) -> str:
    """Why an element of ``images`` cannot be used, to follow its number; empty where it can."""
    if not isinstance(image, dict):
        return f"is {kind_of(image)} instead of an object"
    if is_id(image.get("id")) and is_side(image.get("height")) and is_side(image.get("width")):
        return ""
    given = ", ".join(f"{key} {image.get(key)!r}" for key in ("id", "height", "width"))
    return f"needs an id, a height and a width in whole pixels, it has {given}"


def category_fault(category: Any, *, named: bool = True) -> str:
    """Why an element of ``categories`` cannot be used, likewise; with ``named`` it must have a name."""
    if not isinstance(category, dict):
        return f"is {kind_of(category)} instead of an object"
    if not is_id(category.get("id")):
        return f"needs an id that is a number or a string, it has {category.get('id')!r}"
    if named and not isinstance(category.get("name"), str):
        return f"needs a name that is a string, it has {category.get('name')!r}"
    return ""


def from_coco(
    annotation: Mapping[str, Any], box: array[float], image_size: tuple[int, int], category: int
) -> InstanceAnnotation:
    """An annotation of the file, with the four numbers of its box, of an image of this size and this class number."""
    area = annotation.get("area")
    return InstanceAnnotation(
        annotation.get("segmentation"),
        corners_of(box),
        image_size,
        category,
        bool(annotation.get("iscrowd", 0)),
        area if isinstance(area, (int, float)) and abs(area) <= sys.float_info.max else None,
    )


def four_numbers(xywh: Any) -> array[float]:
    """A box as it is; NaN where it is not one."""
    if isinstance(xywh, list) and len(xywh) == 4 and NUMBERS.issuperset(map(type, xywh)):
        with suppress(OverflowError):  # a whole number that no float holds
            return array("d", xywh)
    return NOT_NUMBERS


def corners_of(xywh: array[float]) -> tuple[float, float, float, float]:
    """``xyxy`` of the four numbers of a box, rounded as Detectron2 rounds it; zeros of ``NOT_NUMBERS``."""
    if xywh is NOT_NUMBERS:
        return NO_BOX
    x, y, width, height = array("f", xywh)
    x, y, right, bottom = array("f", (x, y, x + width, y + height))
    return x, y, right, bottom
