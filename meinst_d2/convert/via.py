"""Reader of the VGG Image Annotator (VIA), versions 1 and 2: one JSON file, a project or exported annotations."""

from __future__ import annotations

from typing import Any

import msgspec

from meinst_d2.convert import AnnotatedImage, Annotations, Source
from meinst_d2.convert.image_folder import ImageFolder, in_threads, size_of
from meinst_d2.convert.outlines import decode, ellipse, rectangle
from meinst_d2.convert.pixels import OBJECT

TOOL = "VIA 1 or 2"


class Region(msgspec.Struct):
    """An object: its shape by ``name``, and attributes that whoever annotates thinks up."""

    shape_attributes: dict[str, float | list[float] | str]
    region_attributes: dict[str, Any] = {}


class Entry(msgspec.Struct):
    """An image."""

    filename: str
    regions: list[Region] | dict[str, Region] = []


class Project(msgspec.Struct):
    """What is read of a project of version 2."""

    entries: dict[str, Entry] = msgspec.field(name="_via_img_metadata")


def read_via(source: Source) -> Annotations:
    """A file; the classes are an attribute of the regions, the only one that there is or ``class_attribute``."""
    path = source.path
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file: name the JSON file that VIA has written")
    is_project = "_via_img_metadata" in decode(path, dict[str, msgspec.Raw], TOOL)
    every = decode(path, Project, TOOL).entries if is_project else decode(path, dict[str, Entry], TOOL)
    entries = [(entry.filename, regions_of(entry)) for entry in every.values()]
    known = sorted({name for _, regions in entries for region in regions for name in region.region_attributes})
    attribute = source.class_attribute
    if attribute is None and source.class_name is None and known:
        if len(known) > 1:
            raise ValueError(f"{path} has regions with the attributes {', '.join(known)}: name one --class-attribute")
        attribute = known[0]
    if attribute is not None and attribute not in known:
        raise ValueError(
            f"{path} has no region with the attribute {attribute}: name one of {', '.join(known) or 'none'}"
        )
    folder = ImageFolder(source.images or source.folder)

    def read(entry: tuple[str, list[Region]]) -> AnnotatedImage:
        name, regions = entry
        image, objects = folder.named(name, path), []
        for number, region in enumerate(regions):
            where = f"region number {number} of {name!r} in {path}"
            class_name = class_of(region, attribute, where) if attribute else source.class_name or OBJECT
            objects.append((class_name, [outline_of(region.shape_attributes, where)]))
        return AnnotatedImage(image, size_of(image), objects)

    return Annotations(folder.root, in_threads(read, entries), num_files=len(folder.paths))


def regions_of(entry: Entry) -> list[Region]:
    return list(entry.regions.values()) if isinstance(entry.regions, dict) else entry.regions


def outline_of(shape: dict[str, Any], where: str) -> list[float]:
    """The polygon of a shape, empty of one without an area; ``where`` is the region, for errors."""
    match shape:
        case {"name": "polygon", "all_points_x": [*xs], "all_points_y": [*ys]} if len(xs) == len(ys):
            return [value for point in zip(xs, ys, strict=True) for value in point]
        case {"name": "rect", "x": float(x), "y": float(y), "width": float(width), "height": float(height)}:
            return rectangle(x, y, x + width, y + height)
        case {"name": "circle", "cx": float(x), "cy": float(y), "r": float(radius)}:
            return ellipse(x, y, radius, radius)
        case {"name": "ellipse", "cx": float(x), "cy": float(y), "rx": float(radius_x), "ry": float(radius_y)}:
            return ellipse(x, y, radius_x, radius_y, float(shape.get("theta", 0)))
        case {"name": "point" | "polyline"}:
            return []
    raise ValueError(f"{where} is not a whole polygon, rect, circle or ellipse ({str(shape)[:80]}): draw it again")


def class_of(region: Region, attribute: str, where: str) -> str:
    """The value of an attribute, of several that can be ticked the only one that is; ``where`` is for errors."""
    value = region.region_attributes.get(attribute)
    ticked = [name for name, is_so in value.items() if is_so] if isinstance(value, dict) else [value]
    if len(ticked) != 1 or not isinstance(ticked[0], (str, int)) or ticked[0] == "":
        raise ValueError(f"{where} has {value!r} for the attribute {attribute}: give it one class in VIA")
    return str(ticked[0])
