"""A copy of a COCO file without what cannot be used."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

from meinst_d2.check import image_problems as ip
from meinst_d2.check import problems as p
from meinst_d2.check.findings import annotation_text, image_text
from meinst_d2.check.problem import Problem
from meinst_d2.check.scan import CocoFile
from meinst_d2.data.coco import Elements, read_sections
from meinst_d2.files import atomic_path


@dataclass(frozen=True)
class Dropped:
    """What a copy lacks.

    Attributes:
        annotations: (M,) whether an annotation was left out.
        images: (N,) the same of images.
        renumbered: (M,) whether an annotation was given a new id.
        list_path: the CSV file that lists them all.
    """

    annotations: npt.NDArray[np.bool_]
    images: npt.NDArray[np.bool_]
    renumbered: npt.NDArray[np.bool_]
    list_path: Path


def require_other_file(path: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """Raise a ValueError if both are one file."""
    if os.path.abspath(path) == os.path.abspath(other) or (os.path.exists(other) and os.path.samefile(path, other)):
        raise ValueError(f"--drop-bad {other} is the file that is read: name another one")


def write_without_bad(file: CocoFile, path: str | os.PathLike[str]) -> Dropped:
    """Copy a COCO file, leaving out unusable annotations, unusable images and the annotations of those.

    Everything else is kept, sections that COCO does not know included, in order; numbers keep their values, spaces are
    not kept. Annotations whose id another has had before get new ids. ``path`` with the suffix .dropped.csv lists what
    was left out or renumbered, and why.

    Args:
        file: scanned and checked.
        path: of the copy; replaced only once it is complete.

    Raises:
        ValueError: ``path`` is the file itself.
    """
    require_other_file(file.path, path)
    images = (file.image_flags & np.uint32(ip.DROPPED_IMAGES)) != 0
    of_image = np.append(images, False)[file.image_rows]
    annotations = (file.flags & np.uint32(p.DROPPED)) != 0
    annotations |= of_image
    renumbered = file.having(p.REPEATED_ID) & ~annotations
    next_id = int(file.annotation_ids.numbers()[1].max(initial=0)) + 1

    def change(section: str, index: int, value: Any) -> Any:
        nonlocal next_id
        if section == "annotations" and renumbered[index]:
            value = {**(msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value), "id": next_id}
            next_id += 1
        return value

    def kept(section: str, index: int) -> bool:
        drop = {"annotations": annotations, "images": images}.get(section)
        return drop is None or not drop[index]

    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as output:
        _copy(file.path, output, kept, change)
    dropped = Dropped(annotations, images, renumbered, Path(path).with_suffix(".dropped.csv"))
    with atomic_path(dropped.list_path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as output:
        writer = csv.writer(output)
        writer.writerow(("section", "number", "what", "done", "why"))
        writer.writerows(listed(file, dropped))
    return dropped


def _copy(
    source: str | os.PathLike[str],
    output: IO[str],
    kept: Callable[[str, int], bool],
    change: Callable[[str, int, Any], Any],
) -> None:
    """Copy a JSON object, element by element of its lists; what is not changed stays as it is written."""
    separator = "{"
    for name, section in read_sections(source).items():
        output.write(f"{separator}\n{json.dumps(name)}: ")
        separator = ","
        if not isinstance(section, Elements):
            output.write(_text(section))
            continue
        first = True
        output.write("[")
        for index, text in enumerate(section.texts):
            if kept(name, index):
                output.write(("" if first else ",") + "\n" + _text(change(name, index, text)))
                first = False
        output.write("]")
    output.write("\n}\n")


def _text(value: Any) -> str:
    return bytes(value).decode() if isinstance(value, msgspec.Raw) else json.dumps(value)


def listed(file: CocoFile, dropped: Dropped) -> list[tuple[str, int, str, str, str]]:
    """A line for everything left out or renumbered: section, number in it, what, what was done, why."""
    lines = [
        ("images", row, image_text(file, row), "left out", _reasons(int(file.image_flags[row]), ip.IMAGE_PROBLEMS))
        for row in np.flatnonzero(dropped.images).tolist()
    ]
    for row in np.flatnonzero(dropped.annotations | dropped.renumbered).tolist():
        flags = int(file.flags[row])
        if dropped.annotations[row]:
            done, why = "left out", _reasons(flags & p.DROPPED, p.ANNOTATION_PROBLEMS) or "its image was left out"
        else:
            done, why = "new id", p.REPEATED_ID.key
        lines.append(("annotations", row, annotation_text(file, row), done, why))
    return lines


def _reasons(flags: int, problems: list[Problem]) -> str:
    dropping = p.DROPPED if problems is p.ANNOTATION_PROBLEMS else ip.DROPPED_IMAGES
    return ", ".join(problem.key for problem in problems if flags & dropping & problem.bit)
