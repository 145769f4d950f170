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
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, overload

import msgspec
import numpy as np
import numpy.typing as npt

from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation

LONGEST_SIDE = 2**31 - 1
"""Pixels of an image."""
NO_BOX = (0.0, 0.0, 0.0, 0.0)
NOT_NUMBERS = array("d", [math.nan] * 4)
NUMBERS = frozenset((int, float))
LISTS = ("images", "annotations", "categories")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PYTHON_ONLY = (b"NaN", b"Infinity", rb"\ud", rb"\uD")
"""What Python's json reads and writes and the JSON standard does not know: such files are left to Python."""


class Elements(Sequence[Any]):
    """The elements of a JSON list, each parsed when it is asked for.

    Attributes:
        texts: as the file has them.
    """

    def __init__(self, texts: Sequence[Any], where: str) -> None:
        """
        Args:
            texts: ``msgspec.Raw``, or values that are parsed already.
            where: the file and the section, for errors.
        """
        self.texts, self._where = texts, where

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Elements: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Elements(self.texts[index], self._where)
        return self._parse(index, self.texts[index])

    def __iter__(self) -> Iterator[Any]:
        return (self._parse(number, text) for number, text in enumerate(self.texts))

    def _parse(self, number: int, text: Any) -> Any:
        if not isinstance(text, msgspec.Raw):
            return text
        try:
            return msgspec.json.decode(text)
        except RecursionError:
            raise ValueError(f"{self._where}: number {number} is nested too deeply") from None
        except msgspec.DecodeError:  # numbers that no float holds, which Python takes for infinite
            try:
                return json.loads(bytes(text))
            except ValueError as error:
                raise ValueError(f"{self._where}: number {number} is not readable JSON ({error})") from error


def read_sections(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values of the outermost object of a COCO file, in order.

    Returns:
        :class:`Elements` for ``images``, ``annotations`` and ``categories`` where they are there; for every other key
        its text (``msgspec.Raw``) or its value.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a JSON object, or one of the three is not a list.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no annotation file {path}")
    if not os.path.getsize(path):
        raise ValueError(f"{path} is empty: it is not in COCO's instances format")
    with open(path, "rb") as file:
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # stays while elements are in use
    if content[:3] == BYTE_ORDER_MARK:
        content = content[3:]
    sections = _split(content, path)
    for name in LISTS:
        if name in sections:
            sections[name] = Elements(_elements(sections[name], name, path), f"{path}: {name!r}")
    return sections


def _split(content: memoryview, path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError as error:
        raise ValueError(f"{path} is not in COCO's instances format: it is not a JSON object ({error})") from error
    except RecursionError:
        raise ValueError(f"{path} is not readable JSON: it is nested too deeply") from None
    except msgspec.DecodeError as error:
        if not any(content.obj.find(word) >= 0 for word in PYTHON_ONLY):  # type: ignore[attr-defined]  # of an mmap
            reason = "it is cut off" if "truncated" in str(error) else str(error).removeprefix("JSON is malformed: ")
            raise ValueError(f"{path} is not readable JSON: {reason}") from error
    try:
        sections = json.loads(bytes(content))
    except RecursionError:
        raise ValueError(f"{path} is not readable JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(sections, dict):
        kind = type(sections).__name__
        raise ValueError(f"{path} is not in COCO's instances format: it is a {kind} instead of an object")
    return sections


def _elements(section: Any, name: str, path: str | os.PathLike[str]) -> Sequence[Any]:
    if isinstance(section, list):
        return section
    if isinstance(section, msgspec.Raw) and bytes(memoryview(section)[:1]) == b"[":
        texts: list[msgspec.Raw] = msgspec.json.decode(section, type=list[msgspec.Raw])
        return texts
    kind = type(json.loads(bytes(section)) if isinstance(section, msgspec.Raw) else section).__name__
    raise ValueError(f"{path}: {name!r} is a {kind} instead of a list: it is not in COCO's instances format")


@dataclass(frozen=True)
class CocoDataset:
    """An annotation file.

    Attributes:
        path: of the file.
        images: ``id``, ``height``, ``width`` and, where the file has it, ``file_name`` of every image.
        category_ids, class_names: K of each, in the order of Detectron2's class numbers.
        annotations: M of them; ``category`` is the class number, -1 of none; ``image_size`` is (0, 0) of no image.
        boxes_xywh: (M, 4) ``bbox`` as the file has it, unrounded; NaN where it is missing or not four numbers.
        annotation_ids: as the file has them.
        image_rows: (M,) the number of each annotation's image in ``images``, or -1.
    """

    path: str
    images: list[dict[str, Any]]
    category_ids: list[Any]
    class_names: list[str]
    annotations: AnnotationTable
    boxes_xywh: npt.NDArray[np.float64]
    annotation_ids: list[Any]
    image_rows: npt.NDArray[np.int64]

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
    if "categories" not in sections:
        raise ValueError(f"{path} is not in COCO's instances format: it has no 'categories'")
    return _categories(sections["categories"], path, named=True)[1]


def category_numbers(ids: Iterable[Any]) -> dict[Any, int]:
    """The class number of every category id, as Detectron2 numbers them: by rising id.

    Raises:
        ValueError: ids of types that have no common order, such as 1 and "2".
    """
    try:
        return {id_: number for number, id_ in enumerate(sorted(ids))}
    except TypeError as error:
        raise ValueError(
            f"the category ids are of types that cannot be sorted ({error}): use numbers, or strings, for all"
        ) from error


def _read(path: str | os.PathLike[str], table: AnnotationTable, *, named: bool) -> CocoDataset:
    sections = read_sections(path)
    missing = [name for name in ("images", "annotations") if name not in sections]
    if missing:
        raise ValueError(f"{path} is not in COCO's instances format: it has no {' and no '.join(map(repr, missing))}")
    images = [_image(image, f"{path}: image number {i}") for i, image in enumerate(sections["images"])]
    row_of_image = {image["id"]: row for row, image in enumerate(images)}
    numbers, names = _categories(sections.get("categories", ()), path, named=named)
    start, rows, categories, ids, boxes = len(table), [], [], [], array("d")
    for number, annotation in enumerate(sections["annotations"]):
        _require_object(annotation, f"{path}: annotation number {number}")
        table.append(from_coco(annotation))
        rows.append(_lookup(row_of_image, annotation.get("image_id")))
        categories.append(_lookup(numbers, annotation.get("category_id")))
        ids.append(annotation.get("id"))
        boxes.extend(_four_numbers(annotation.get("bbox")))
    sizes = np.array([(image["height"], image["width"]) for image in images] + [(0, 0)], np.int64)
    image_rows = np.array(rows, np.int64)
    table.settle(start, sizes[image_rows], categories)
    boxes_xywh = np.array(boxes).reshape(-1, 4)
    return CocoDataset(os.fspath(path), images, list(numbers), names, table, boxes_xywh, ids, image_rows)


def _image(image: Any, where: str) -> dict[str, Any]:
    _require_object(image, where)
    try:
        height, width = int(image["height"]), int(image["width"])
        hash(image["id"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        given = ", ".join(f"{key} {image.get(key)!r}" for key in ("id", "height", "width"))
        raise ValueError(f"{where} needs an id, a height and a width in whole pixels, it has {given}") from error
    if not (0 < height <= LONGEST_SIDE and 0 < width <= LONGEST_SIDE):
        raise ValueError(f"{where} has a height of {height} and a width of {width}: write those of the file, in pixels")
    named = {"file_name": image["file_name"]} if isinstance(image.get("file_name"), str) else {}
    return {"id": image["id"], "height": height, "width": width, **named}


def _categories(
    categories: Iterable[Any], path: str | os.PathLike[str], *, named: bool
) -> tuple[dict[Any, int], list[str]]:
    """The number of every id, and the names by number; with ``named`` every category must have one."""
    name_of: dict[Any, str] = {}
    for number, category in enumerate(categories):
        where = f"{path}: category number {number}"
        _require_object(category, where)
        if not is_id(category.get("id")):
            raise ValueError(f"{where} needs an id that is a number or a string, it has {category.get('id')!r}")
        if named and not isinstance(category.get("name"), str):
            raise ValueError(f"{where} needs a name that is a string, it has {category.get('name')!r}")
        name_of[category["id"]] = str(category.get("name"))
    try:
        numbers = category_numbers(name_of)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return numbers, [name_of[id_] for id_ in numbers]


def is_id(value: Any) -> bool:
    """Whether a JSON value can be an id."""
    return isinstance(value, (int, float, str))


def _require_object(value: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a {type(value).__name__} instead of an object")


def _lookup(found: Mapping[Any, int], key: Any) -> int:
    return found.get(key, -1) if is_id(key) else -1  # a list or an object is not an id


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


def _four_numbers(xywh: Any) -> array[float]:
    """A box as it is; NaN where it is not one."""
    if isinstance(xywh, list) and len(xywh) == 4 and NUMBERS.issuperset(map(type, xywh)):
        with suppress(OverflowError):  # a whole number that no float holds
            return array("d", xywh)
    return NOT_NUMBERS


def _box(xywh: Any) -> tuple[float, float, float, float]:
    """``xyxy``, rounded as Detectron2 rounds it."""
    numbers = _four_numbers(xywh)
    if numbers is NOT_NUMBERS:
        return NO_BOX
    x, y, width, height = array("f", numbers)
    left, top, right, bottom = array("f", (x, y, x + width, y + height))
    return left, top, right, bottom


def _beyond_float(value: float) -> bool:
    """Whether it is a whole number that no float can hold."""
    return isinstance(value, int) and abs(value) > sys.float_info.max
