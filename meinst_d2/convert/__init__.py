"""Annotations of other tools and layouts, as COCO instances files.

The readers are our own: labelme2coco 0.2.6 splits groups and stops at mask shapes, datumaro 1.13 makes VOC's void an
object and brings 260 MB, supervision 0.31 rasterizes YOLO's polygons, and none of them reads VIA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst_d2.masks.rasterize import RLE

Part = list[float] | RLE
"""Of an object: a polygon x0, y0, x1, y1, ... or a mask in the whole image."""


@dataclass(frozen=True)
class Source:
    """What is to be read, as the command line names it."""

    path: Path
    images: Path | None = None  # the folder of images, where it is not the format's own
    class_name: str | None = None  # of every object
    class_attribute: str | None = None  # of VIA's regions

    @property
    def folder(self) -> Path:
        """The path, or the folder that the file lies in."""
        return self.path if self.path.is_dir() else self.path.parent


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its objects, none of them or more."""

    path: Path
    size: tuple[int, int]  # (height, width) as Detectron2 reads it
    objects: Sequence[tuple[str, Sequence[Part]]]  # class name, and the parts of the mask; none of an empty one


@dataclass(frozen=True)
class Annotations:
    """What a reader finds."""

    root: Path  # the folder that file names are relative to
    images: Iterable[AnnotatedImage]  # read as they are asked for
    class_names: list[str] | None = None  # None: those of the objects, sorted
    num_files: int | None = None  # images in the folder, annotated or not; None: not counted
