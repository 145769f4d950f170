"""Reader of labelme's JSON files, one per image."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import msgspec
import numpy as np

from meinst_d2.convert import AnnotatedImage, Annotations, Part, Source
from meinst_d2.convert.image_folder import ImageFolder, files_below, in_threads, pixels_of, size_of
from meinst_d2.convert.outlines import decode, ellipse, rectangle
from meinst_d2.convert.pixels import label_rles

POLYGONS = ("polygon", "oriented_rectangle")
OF_TWO_POINTS = ("rectangle", "circle", "mask")
WITHOUT_AREA = ("point", "points", "line", "linestrip")


class Shape(msgspec.Struct):
    """An object, or a part of one; the objects of a group are parts of one."""

    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = None
    group_id: int | str | None = None
    mask: str | None = None


class LabelmeFile(msgspec.Struct, rename="camel"):
    """What is read of a file."""

    shapes: list[Shape]
    image_path: str
    image_height: int | None = None
    image_width: int | None = None


def read_labelme(source: Source) -> Annotations:
    """The files below a folder, or one of them."""
    paths = files_below(source.path, [".json"]) if source.path.is_dir() else [source.path]
    if not paths or not paths[0].is_file():
        raise FileNotFoundError(f"{source.path} holds no .json files of labelme: name one, or their folder")
    folder = ImageFolder(source.images or source.folder)

    def read(path: Path) -> AnnotatedImage:
        file = decode(path, LabelmeFile, "labelme")
        image = folder.named(file.image_path, path)
        height, width = size = size_of(image)
        if file.image_height not in (None, height) or file.image_width not in (None, width):
            sizes = f"{file.image_height} x {file.image_width} pixels, and {image} has {height} x {width}"
            raise ValueError(f"{path} is of an image of {sizes} (height x width): name its folder with --images")
        objects: dict[object, tuple[str, list[Part]]] = {}
        for number, shape in enumerate(file.shapes):
            key = number if shape.group_id is None else (shape.label, shape.group_id)
            _, parts = objects.setdefault(key, (shape.label, []))
            parts += parts_of(shape, size, f"shape number {number} of {path}")
        return AnnotatedImage(image, size, list(objects.values()))

    return Annotations(folder.root, in_threads(read, paths), num_files=len(folder.paths))


def parts_of(shape: Shape, size: tuple[int, int], where: str) -> list[Part]:
    """The polygon or the mask of a shape, nothing of one without an area; ``where`` is the shape, for errors."""
    kind, points = shape.shape_type or "polygon", shape.points
    if kind in WITHOUT_AREA:
        return []
    if kind in POLYGONS:
        return [[value for point in points for value in point]]
    if kind not in OF_TWO_POINTS:
        raise ValueError(f"{where} is of the type {kind!r}: draw it as one of {', '.join(POLYGONS + OF_TWO_POINTS)}")
    if len(points) != 2:
        raise ValueError(f"{where} is a {kind} of {len(points)} points instead of two: draw it again")
    (x0, y0), (x1, y1) = points
    if kind == "rectangle":
        return [rectangle(x0, y0, x1, y1)]
    if kind == "circle":  # the second point lies on it
        radius = math.hypot(x1 - x0, y1 - y0)
        return [ellipse(x0, y0, radius, radius)]
    try:
        mask = pixels_of(io.BytesIO(base64.b64decode(shape.mask or "", validate=True)))
    except (ValueError, OSError) as error:
        raise ValueError(f"{where} has a mask that is not a PNG in base64: draw it again") from error
    whole = np.zeros(size, np.bool_)
    window = whole[max(int(y0), 0) :, max(int(x0), 0) :][: mask.shape[0], : mask.shape[1]]
    if min(x0, y0) < 0 or window.shape != mask.shape:
        raise ValueError(f"{where} has a mask at ({x0:g}, {y0:g}) that does not fit into its image: draw it again")
    window[:] = mask != 0
    return [*label_rles(whole).values()]
