"""A COCO file as it is checked: read in one pass, and written again without what cannot be used."""

from __future__ import annotations

import csv
import json
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from meinst_d2.check import Flags, Rule, bits
from meinst_d2.check import annotation_rules as ar
from meinst_d2.check.image_rules import DROPPED_IMAGES, IMAGE_RULES, bad_entry, flag_repeats
from meinst_d2.data.annotations import AnnotationTable
from meinst_d2.data.coco import LISTS, elements, four_numbers, from_coco, is_id, is_side, lookup, read_sections
from meinst_d2.files import atomic_path


@dataclass
class CocoFile:
    """What a COCO file holds. A row is the number of an element in its list.

    ``category_ids`` and ``classes`` are of the categories that have both, in the order that training numbers them.
    """

    path: str | os.PathLike[str]
    annotations: AnnotationTable  # a row per element, whatever it is; those without an image have the size (0, 0)
    annotation_ids: list[Any]  # by row; None where they are not ids
    flags: Flags  # (M,) uint32, bits of ANNOTATION_RULES
    image_rows: npt.NDArray[np.int64]  # (M,) the row of each annotation's image, -1 where there is none
    image_ids: list[Any]  # by image row; None where it is not there
    names: list[str]  # by image row; "" where it is not there
    sizes: npt.NDArray[np.int64]  # (N, 2) height and width, 0 where they are not a size
    image_flags: Flags  # (N,) uint32, bits of IMAGE_RULES
    categories: list[Any]  # as the file has them
    category_ids: list[Any]
    classes: list[str]
    unknown_ids: dict[str, list[Any]]  # the first ids that stand for nothing, by the key of the rule

    def having(self, *rules: Rule) -> npt.NDArray[np.bool_]:
        """(M,) whether annotations break any of the rules."""
        return (self.flags & bits(*rules)) != 0

    @property
    def learned(self) -> npt.NDArray[np.bool_]:
        """(M,) whether training means to learn the annotation."""
        return (self.flags & ar.LEFT_OUT) == 0

    @property
    def class_counts(self) -> list[tuple[str, int]]:
        """Every class, and how many of its objects there are to learn."""
        counts = np.bincount(self.annotations.categories[self.learned], minlength=len(self.classes))
        return list(zip(self.classes, counts.tolist(), strict=True))

    def image_text(self, row: int) -> str:
        """An image for a reader."""
        return f"image {self.image_ids[row]!r}" + (f" ({self.names[row]})" if self.names[row] else "")

    def annotation_text(self, row: int) -> str:
        """An annotation for a reader."""
        id_, image = self.annotation_ids[row], int(self.image_rows[row])
        text = f"annotation {id_!r}" if id_ is not None else f"number {row} of 'annotations'"
        return text + (f" of {self.names[image] or self.image_text(image)}" if image >= 0 else "")


def scan(path: str | os.PathLike[str]) -> CocoFile:
    """Read a COCO file and look at every element and its ids; raises what ``read_sections`` raises."""
    sections = read_sections(path)
    if not sections.keys() & set(LISTS):
        raise ValueError(f"{path} has neither images nor annotations: it is not in COCO's instances format")
    image_flags, image_ids, names, sizes = array("I"), list[Any](), list[str](), []
    for value in elements(sections, "images", path):
        image = value if isinstance(value, dict) else {}
        image_flags.append(bits(bad_entry(value)))
        image_ids.append(image["id"] if is_id(image.get("id")) else None)
        names.append(image["file_name"] if isinstance(image.get("file_name"), str) else "")
        sides = image.get("height"), image.get("width")
        sizes.append(tuple(map(int, sides)) if all(map(is_side, sides)) else (0, 0))
    categories = list(elements(sections, "categories", path))
    named = [c for c in categories if isinstance(c, dict) and is_id(c.get("id")) and "name" in c]
    named.sort(key=lambda category: (isinstance(category["id"], str), category["id"]))
    category_ids, classes = [c["id"] for c in named], [str(c["name"]) for c in named]

    rows = {id_: row for row, id_ in enumerate(image_ids) if id_ is not None}
    numbers = {id_: number for number, id_ in enumerate(category_ids)}
    annotations, ids, flags, image_rows, seen = AnnotationTable(), list[Any](), array("I"), array("q"), set()
    unknown_ids = dict[str, list[Any]]()
    bar = {"total": len(sections.get("annotations", ())), "unit": " annotations", "unit_scale": True}
    for value in tqdm(elements(sections, "annotations", path), desc="reading", dynamic_ncols=True, **bar):
        annotation = value if isinstance(value, dict) else {}
        row, category = lookup(rows, annotation.get("image_id")), lookup(numbers, annotation.get("category_id"))
        id_ = annotation["id"] if is_id(annotation.get("id")) else None
        found = ar.reference_flags(ar.element_flags(value), row, category, id_ in seen)
        if row >= 0 and not found & ar.NO_KEYS.bit:
            seen.add(id_)
        for rule, key in ((ar.UNKNOWN_IMAGE, "image_id"), (ar.UNKNOWN_CATEGORY, "category_id")):
            if found & rule.bit and len(unknown := unknown_ids.setdefault(rule.key, [])) < ar.LOOKED_AT:
                unknown.append(annotation[key])
        box, size = four_numbers(annotation.get("bbox")), sizes[row] if row >= 0 else (0, 0)
        annotations.append(from_coco(annotation, box, size, category))
        ids.append(id_)
        image_rows.append(row)
        flags.append(found)
    of_annotations = (annotations, ids, np.array(flags, np.uint32), np.array(image_rows, np.int64))
    of_images = (image_ids, names, np.array(sizes, np.int64).reshape(-1, 2), np.array(image_flags, np.uint32))
    file = CocoFile(path, *of_annotations, *of_images, categories, category_ids, classes, unknown_ids)
    flag_repeats(file)
    return file


class Line(NamedTuple):
    """Something that a copy lacks, or that has a new id there."""

    section: str
    number: int
    what: str
    done: str
    why: str


def require_other_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Raise a ValueError if both are one file."""
    if os.path.abspath(path) == os.path.abspath(other) or (os.path.exists(other) and os.path.samefile(path, other)):
        raise ValueError(f"--drop-bad {other} is the file that is read: name another one")


def write_without_bad(file: CocoFile, path: str | os.PathLike[str]) -> tuple[Path, list[Line]]:
    """Copy a checked COCO file, leaving out unusable annotations, unusable images and the annotations of those.

    Everything else but spaces between elements is kept as it is written, in order, unknown sections included. Repeated
    ids of annotations are replaced. The copy is put in place once complete, never over the file itself (ValueError).

    Returns:
        The CSV file (``path`` with the suffix .dropped.csv) of what was left out or renumbered, and why, and its lines.
    """
    require_other_file(file.path, path)
    images = (file.image_flags & DROPPED_IMAGES) != 0
    annotations = ((file.flags & ar.DROPPED) != 0) | np.append(images, False)[file.image_rows]
    renumbered = file.having(ar.REPEATED_ID) & ~annotations
    numbers = (id_ for id_ in file.annotation_ids if isinstance(id_, (int, float)) and abs(id_) < 2**63)
    next_id = max(map(int, numbers), default=0) + 1
    with atomic_path(path) as temporary, open(temporary, "wb") as output:
        separator = b"{"
        for name, section in read_sections(file.path).items():
            output.write(separator + b"\n" + json.dumps(name).encode() + b": ")
            separator = b","
            if not isinstance(section, list):
                output.write(section)
                continue
            left_out = {"annotations": annotations, "images": images}.get(name, np.zeros(len(section), bool))
            output.write(b"[")
            for count, index in enumerate(np.flatnonzero(~left_out).tolist()):
                text = bytes(section[index])
                if name == "annotations" and renumbered[index]:
                    text = json.dumps({**json.loads(text), "id": next_id}).encode()
                    next_id += 1
                output.write((b"," if count else b"") + b"\n" + text)
            output.write(b"]")
        output.write(b"\n}\n")

    def reasons(flags: int, rules: list[Rule]) -> str:
        return ", ".join(rule.key for rule in rules if flags & rule.bit)

    lines = []
    for row in np.flatnonzero(images).tolist():
        why = reasons(int(file.image_flags[row]) & DROPPED_IMAGES, IMAGE_RULES)
        lines.append(Line("images", row, file.image_text(row), "left out", why))
    for row in np.flatnonzero(annotations | renumbered).tolist():
        why = reasons(int(file.flags[row]) & ar.DROPPED, ar.ANNOTATION_RULES) or "its image was left out"
        done, why = ("left out", why) if annotations[row] else ("new id", ar.REPEATED_ID.key)
        lines.append(Line("annotations", row, file.annotation_text(row), done, why))
    list_path = Path(path).with_suffix(".dropped.csv")
    with atomic_path(list_path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as listing:
        csv.writer(listing).writerows([Line._fields, *lines])
    return list_path, lines
