"""Annotated images as COCO instances files, in one file or split into two."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pycocotools.mask as mask_util

from meinst_d2.convert import AnnotatedImage, Annotations, Part
from meinst_d2.data.coco import listed
from meinst_d2.files import atomic_path
from meinst_d2.masks.rle import UnusableInstance, areas, rle_of, tight_boxes

Json = dict[str, Any]
SMALLEST_POLYGON = 6
"""Coordinates."""


def collect(annotations: Annotations, wanted: set[str] | None = None) -> tuple[list[Json], int]:
    """Read every image.

    Args:
        annotations: what a reader has found.
        wanted: names of image files, with or without suffix, to keep; None: all.

    Returns:
        COCO's entries of the images by ``file_name``, each with its ``annotations`` whose ``category`` is a name; and
        how many objects have an empty mask, which are left out.

    Raises:
        ValueError: an image comes twice, or no image has an object.
    """
    entries: dict[str, Json] = {}
    left_out = 0
    for image in annotations.images:
        if wanted is not None and not {image.path.name, image.path.stem} & wanted:
            continue
        name = image.path.relative_to(annotations.root).as_posix()
        if name in entries:
            raise ValueError(f"the image {image.path} is annotated twice: remove one of its annotations")
        objects = [(category, annotation_of(parts, image)) for category, parts in image.objects]
        kept = [{"category": category, **annotation} for category, annotation in objects if annotation]
        left_out += len(objects) - len(kept)
        height, width = image.size
        entries[name] = {"file_name": name, "height": height, "width": width, "annotations": kept}
    if not any(entry["annotations"] for entry in entries.values()):
        raise ValueError(f"none of the {len(entries):,} images of {annotations.root} has an object: name others")
    return [entries[name] for name in sorted(entries)], left_out


def annotation_of(parts: Sequence[Part], image: AnnotatedImage) -> Json | None:
    """COCO's entry of an object, but for ids and category; None if its mask is empty.

    Polygons stay as they are if all parts are polygons; the box is theirs, within the image.
    """
    parts = [part for part in parts if not isinstance(part, list) or len(part) >= SMALLEST_POLYGON]
    if not parts:
        return None
    polygons = [part for part in parts if isinstance(part, list)]
    masks = [part for part in parts if not isinstance(part, list)]
    try:
        rles = [*masks, rle_of(polygons, image.size)] if polygons else masks
    except UnusableInstance as error:
        raise ValueError(f"{image.path} has an object with a {error}: correct its annotation") from error
    rle = mask_util.merge(rles) if len(rles) > 1 else rles[0]
    area = int(areas([rle])[0])
    if not area:
        return None
    if masks:
        box = tight_boxes([rle])[0].tolist()
        return {"bbox": box, "area": area, "iscrowd": 0, "segmentation": {**rle, "counts": rle["counts"].decode()}}
    points = np.concatenate(polygons).reshape(-1, 2)
    low, high = (corner.clip(0, image.size[::-1]) for corner in (points.min(axis=0), points.max(axis=0)))
    return {"bbox": [*low.tolist(), *(high - low).tolist()], "area": area, "iscrowd": 0, "segmentation": polygons}


def class_names_of(entries: Iterable[Json], given: Sequence[str] | None) -> list[str]:
    """The classes, in the order of their ids: those given, which must have every object's, or the objects', sorted."""
    found = {annotation["category"] for entry in entries for annotation in entry["annotations"]}
    names = sorted(found) if given is None else list(given)
    if len(set(names)) < len(names):
        raise ValueError(f"the class names {listed(names)} are not all different: rename or merge some")
    if missing := sorted(found - set(names)):
        raise ValueError(f"there are objects of the class {listed(missing)}, not among {listed(names)}: add it")
    return names


def choose_val(names: Sequence[str], share: float, seed: int, group: re.Pattern[str] | None = None) -> set[str]:
    """Images for validation, the same for the same names and seed whatever their order.

    Args:
        names: of the images.
        share: of the images, about; groups are not divided.
        seed: for another choice.
        group: what it matches, or its first group, is equal in images that stay together; others are alone.

    Raises:
        ValueError: one of the sides would be empty, or ``group`` matches no name.
    """
    groups: dict[str, list[str]] = {}
    matched = 0
    for name in sorted(names):
        match = group.search(name) if group else None
        matched += match is not None
        groups.setdefault(f"={match[1 if match.re.groups else 0]}" if match else f"/{name}", []).append(name)
    if group and not matched:
        raise ValueError(f"--group {group.pattern} matches no name, such as {min(names)}: correct it")
    order = sorted(groups, key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    most, chosen = max(round(share * len(names)), 1), set[str]()
    for key in order:
        if len(chosen) + len(groups[key]) <= most:
            chosen.update(groups[key])
    if not chosen or len(chosen) == len(names):
        have = f"{len(names)} images in {len(groups)} groups"
        raise ValueError(f"--val {share:g} of {have} leaves one side empty: change it, or make the groups smaller")
    return chosen


def as_coco(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Json:
    """The content of a COCO instances file."""
    ids = {name: number for number, name in enumerate(names, 1)}
    images, annotations = [], list[Json]()
    for number, entry in enumerate(entries, 1):
        images.append({"id": number, **{key: entry[key] for key in ("file_name", "height", "width")}})
        for annotation in entry["annotations"]:
            own = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[annotation["category"]]}
            annotations.append({**own, **{key: value for key, value in annotation.items() if key != "category"}})
    categories = [{"id": ids[name], "name": name} for name in names]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_files(contents: Mapping[Path, Json]) -> None:
    """Write JSON files, all or none of them."""
    with ExitStack() as stack:
        temporary = {path: stack.enter_context(atomic_path(path)) for path in contents}
        for path, content in contents.items():
            temporary[path].write_bytes(msgspec.json.encode(content) + b"\n")
