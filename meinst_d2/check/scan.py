"""One pass over a COCO file: everything that is wrong with it before images and masks are looked at."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from meinst_d2.check import image_problems as ip
from meinst_d2.check import problems as p
from meinst_d2.check.elements import annotation_flags, is_key, is_side
from meinst_d2.check.ids import Ids
from meinst_d2.check.problem import Problem, bits
from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation
from meinst_d2.data.coco import NO_BOX, from_coco, read_sections

SECTIONS = ("images", "annotations", "categories")
NOTHING = InstanceAnnotation(None, NO_BOX, (0, 0), -1, False)


class Names:
    """Many short texts in one."""

    def __init__(self) -> None:
        self._text, self._ends = bytearray(), array("q", [0])

    def append(self, name: str) -> None:
        """Add the text of the next row."""
        self._text += name.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._text))

    def __getitem__(self, row: int) -> str:
        return self._text[self._ends[row] : self._ends[row + 1]].decode("utf-8", "surrogatepass")

    def repeats(self) -> npt.NDArray[np.bool_]:
        """(n,) whether an earlier row has the text; empty ones do not count."""
        hashes = np.array([hash(bytes(self._of(row))) for row in range(len(self._ends) - 1)], np.int64)
        order = hashes.argsort(kind="stable")
        found = np.zeros(len(hashes), bool)
        found[order[1:][np.diff(hashes[order]) == 0]] = True
        return found & (np.diff(np.array(self._ends)) > 0)

    def _of(self, row: int) -> bytearray:
        return self._text[self._ends[row] : self._ends[row + 1]]


@dataclass
class CocoFile:
    """What a COCO file holds. A row is the number of an element in its list.

    Attributes:
        path: of the file.
        annotations: a row per element, whatever it is; those without an image have the size (0, 0).
        annotation_ids: by row.
        flags: (M,) uint32, bits of ``ANNOTATION_PROBLEMS``.
        image_rows: (M,) the row of each annotation's image, -1 where there is none.
        image_ids, names: by image row.
        sizes: (N, 2) height and width, 0 where they are no size.
        image_flags: (N,) uint32, bits of ``IMAGE_PROBLEMS``.
        classes: names, in the order that training numbers them.
        general: other problems, with what shows each.
    """

    path: str | os.PathLike[str]
    annotations: AnnotationTable = field(default_factory=AnnotationTable)
    annotation_ids: Ids = field(default_factory=Ids)
    flags: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    image_rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    image_ids: Ids = field(default_factory=Ids)
    names: Names = field(default_factory=Names)
    sizes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    image_flags: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    classes: list[str] = field(default_factory=list)
    general: dict[Problem, list[str]] = field(default_factory=dict)

    def having(self, *problems: Problem) -> npt.NDArray[np.bool_]:
        """(M,) whether annotations have any of the problems."""
        return (self.flags & np.uint32(bits(*problems))) != 0

    @property
    def learned(self) -> npt.NDArray[np.bool_]:
        """(M,) whether training means to learn the annotation."""
        return (self.flags & np.uint32(p.LEFT_OUT)) == 0


def scan(path: str | os.PathLike[str]) -> CocoFile:
    """Read a COCO file and look at every element by itself, then at the ids.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no readable JSON object, or a section is no list.
    """
    return _Scanner(path).run()


class _Scanner:
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.file = CocoFile(path)
        self.flags, self.image_flags, self.sizes = array("I"), array("I"), array("q")
        self.image_keys, self.category_keys = Ids(), Ids()  # of every annotation
        self.categories: list[Any] = []

    def run(self) -> CocoFile:
        file = self.file
        sections = read_sections(file.path)
        if not sections.keys() & set(SECTIONS):
            raise ValueError(f"{file.path} has neither images nor annotations: it is not in COCO's instances format")
        total = sum(len(sections.get(name, ())) for name in SECTIONS)
        with tqdm(total=total, desc="reading", unit=" elements", unit_scale=True, dynamic_ncols=True) as bar:
            for name in SECTIONS:
                add = getattr(self, f"add_{name}")
                for value in sections.get(name, ()):
                    add(value)
                    bar.update()
        self.settle("categories" in sections)
        return file

    def add_images(self, value: Any) -> None:
        file, flags = self.file, 0
        image = value if isinstance(value, dict) else {}
        if not isinstance(value, dict):
            flags |= ip.IMAGE_NO_OBJECT.bit
        elif not all(key in image for key in ("id", "file_name", "height", "width")) or not is_key(image["id"]):
            flags |= ip.IMAGE_KEYS.bit
        sides = [image.get("height"), image.get("width")]
        if not all(is_side(side) for side in sides):
            flags |= ip.IMAGE_SIDES.bit if not flags else 0
            sides = [0, 0]
        name = image.get("file_name")
        if image and not flags and not isinstance(name, str):
            flags |= ip.IMAGE_KEYS.bit
        file.image_ids.append(image.get("id"))
        file.names.append(name if isinstance(name, str) else "")
        self.sizes.extend(int(side) for side in sides)  # type: ignore[arg-type]
        self.image_flags.append(flags)

    def add_categories(self, value: Any) -> None:
        self.categories.append(value)

    def add_annotations(self, value: Any) -> None:
        table = self.file.annotations
        if not isinstance(value, dict):
            value, flags = {}, p.NO_OBJECT.bit
            table.append(NOTHING)
        else:
            flags = annotation_flags(value)
            unreadable = flags & p.BAD_SEGMENTATION.bit
            table.append(from_coco({**value, "segmentation": None} if unreadable else value))
        self.flags.append(flags)
        self.file.annotation_ids.append(value.get("id"))
        self.image_keys.append(value.get("image_id"))
        self.category_keys.append(value.get("category_id"))

    def settle(self, has_categories: bool) -> None:
        file = self.file
        file.flags = np.array(self.flags, np.uint32)
        file.image_flags = np.array(self.image_flags, np.uint32)
        file.sizes = np.array(self.sizes, np.int64).reshape(-1, 2)
        known = self._settle_categories(has_categories)
        file.image_rows = file.image_ids.find(self.image_keys)
        no_image = file.image_rows < 0
        file.annotations.settle(0, np.where(no_image[:, None], 0, _rows(file.sizes, file.image_rows)), known)
        keyed = (file.flags & np.uint32(bits(p.NO_OBJECT, p.NO_KEYS))) == 0
        # Detectron2 looks at the annotations of images alone; createIndex at the keys of all.
        for_nothing = no_image & keyed
        file.flags[for_nothing] &= np.uint32(p.CROWD.bit)
        file.flags[for_nothing] |= np.uint32(p.UNKNOWN_IMAGE.bit)
        reached = keyed & ~no_image
        file.flags[reached & (known < 0)] |= np.uint32(p.UNKNOWN_CATEGORY.bit)
        file.flags[reached & _repeats_among(file.annotation_ids, reached)] |= np.uint32(p.REPEATED_ID.bit)
        file.image_flags[file.image_ids.repeats(earlier=False)] |= np.uint32(ip.REPEATED_IMAGE_ID.bit)
        file.image_flags[file.names.repeats()] |= np.uint32(ip.REPEATED_FILE.bit)
        if not len(file.image_flags):
            file.general[ip.NO_IMAGES] = ["the file lists none"]
        if file.image_ids.mixed:
            file.general[ip.MIXED_IDS] = ["images"]

    def _settle_categories(self, has_categories: bool) -> npt.NDArray[np.int64]:
        """The class of every annotation as training numbers them, -1 for none; lists the classes."""
        file, ids = self.file, Ids()
        for category in self.categories:
            usable = isinstance(category, dict) and is_key(category.get("id")) and "name" in category
            if not usable:
                file.general.setdefault(ip.CATEGORY_KEYS, []).append(repr(category))
            ids.append(category["id"] if usable else None)
        if not has_categories or not self.categories:
            file.general[ip.NO_CATEGORIES] = ["there is no list of them" if not has_categories else "the list is empty"]
        if ids.mixed:
            file.general.setdefault(ip.MIXED_IDS, []).append("categories")
            order = sorted(range(len(ids)), key=lambda row: (str(type(ids[row])), str(ids[row])))
        else:
            order = sorted((row for row in range(len(ids)) if ids[row] is not None), key=lambda row: ids[row])
        usable_rows = [row for row in order if ids[row] is not None]
        file.classes = [str(self.categories[row]["name"]) for row in usable_rows]
        repeated = ids.repeats()
        for row in usable_rows:
            if repeated[row]:
                file.general.setdefault(ip.REPEATED_CATEGORY_ID, []).append(
                    f"{ids[row]} ({self.categories[row]['name']})"
                )
        for name in dict.fromkeys(name for name in file.classes if file.classes.count(name) > 1):
            file.general.setdefault(ip.REPEATED_NAME, []).append(name)
        number = np.full(len(ids) + 1, -1, np.int64)  # the last for annotations of no category
        number[usable_rows] = np.arange(len(usable_rows))
        return number[ids.find(self.category_keys)]


def _rows(values: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return values[rows] if len(values) else np.zeros((len(rows), 2), np.int64)


def _repeats_among(ids: Ids, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    found = ids.repeats()
    if not found.any() or chosen.all():
        return found
    among = Ids()
    rows = chosen.nonzero()[0]
    for row in rows:
        among.append(ids[row])
    found[:] = False
    found[rows] = among.repeats()
    return found
