"""Rules about images, categories and whole files: the functions that find them, then what each is called.

The effects describe Detectron2's ``load_coco_json`` followed by this project's mapper; tests/check runs both.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from meinst_d2.check import DROP, FINE, HURTS, STOPS, Finding, Flags, Report, Rule, add_rule, bits, in_chunks
from meinst_d2.check.annotation_rules import CROWD, LOOKED_AT, NEGATIVE, NO_NUMBERS, NOT_FINITE
from meinst_d2.data.coco import category_fault, is_id, is_side
from meinst_d2.data.image_files import read_header, read_image

if TYPE_CHECKING:
    from meinst_d2.check.coco_file import CocoFile

FEW = 10
"""Objects below which a class has few."""

# Found in an element of 'images', and among all of them.


def bad_entry(image: Any) -> Rule | None:
    if not isinstance(image, dict):
        return IMAGE_NO_OBJECT
    if not is_id(image.get("id")) or not isinstance(image.get("file_name"), str) or not {"height", "width"} <= {*image}:
        return IMAGE_KEYS
    return None if is_side(image["height"]) and is_side(image["width"]) else IMAGE_SIDES


def flag_repeats(file: CocoFile) -> None:
    """Of images with one id Detectron2 takes the last."""
    last, names = dict[Any, int](), set[str]()
    for row, (id_, name) in enumerate(zip(file.image_ids, file.names, strict=True)):
        if id_ is not None and id_ in last:
            file.image_flags[last[id_]] |= REPEATED_IMAGE_ID.bit
        last[id_] = row
        if name in names:
            file.image_flags[row] |= REPEATED_FILE.bit
        names |= {name} if name else set()


# Found in the files.


def check_images(file: CocoFile, folder: str | os.PathLike[str], *, decode: bool = False, workers: int = 1) -> None:
    """Flag images of a scanned file that are not in the folder, cannot be read, or have another size.

    With ``decode`` every pixel is read, as in training, instead of the headers alone: it finds files that are cut off.
    Raises a NotADirectoryError if there is no such folder.
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"the folder of images {folder} does not exist: name the folder that holds them")
    given = {"workers": workers, "title": "images", "unit": " images", "chunk": 32}
    for rows, flags in in_chunks(_file_flags, len(file.image_flags), file, folder, decode, **given):
        file.image_flags[rows] |= flags


def _file_flags(rows: Sequence[int], file: CocoFile, folder: str | os.PathLike[str], decode: bool) -> Flags:
    flags = np.zeros(len(rows), np.uint32)
    for i, row in enumerate(rows):
        if not file.image_flags[row] & bits(IMAGE_NO_OBJECT, IMAGE_KEYS):
            flags[i] = bits(*bad_file(os.path.join(folder, file.names[row]), tuple(file.sizes[row].tolist()), decode))
    return flags


def bad_file(path: str, size: tuple[int, int], decode: bool) -> list[Rule]:
    """The rules that an image file breaks, which should have this (height, width); zeros are not compared."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes and EXIF, which Detectron2 reads all the same
            header = read_header(path)
            if decode:
                read_image(path, "RGB")
    except FileNotFoundError:
        return [MISSING]
    except Exception:  # Pillow's plugins raise what they like
        return [UNREADABLE]
    other_size = min(size) > 0 and size != header.size
    broken = {OTHER_SIZE: other_size, DEEP: header.deep, PAGES: header.pages > 1, ROTATED: header.turned}
    return [rule for rule, is_so in broken.items() if is_so]


def unused(report: Report, finding: Finding) -> dict[str, str]:
    """How many of them training never opens."""
    flags = report.file.image_flags[report.file.image_flags & finding.rule.bit != 0]
    count = int((flags & bits(NO_ANNOTATIONS, ONLY_CROWD) != 0).sum())
    if not count or not report.coverage.settings.filter_empty:
        return {}
    return {"note": f"{count:,} of them have no objects: training never opens those, evaluation does"}


def missing_files(report: Report, finding: Finding) -> dict[str, str]:
    """Whether they are there under another name."""
    _listing.cache_clear()
    special, file, folder = unused(report, finding), report.file, os.fspath(report.folder or "")
    rows = np.flatnonzero(file.image_flags & MISSING.bit)
    rows = rows[:: -(-len(rows) // LOOKED_AT)]
    how, count = Counter(other_name(file.names[row], folder) for row in rows.tolist()).most_common(1)[0]
    if how and count > len(rows) / 2:
        special["note"] = "; ".join(filter(None, (special.get("note"), f"most are there {how}")))
        special["fix"] = "correct file_name, or name the folder that it is relative to"
    elif finding.count == len(file.image_flags):
        example = os.path.join(folder, file.names[rows[0]])
        special["fix"] = f"name the folder that file_name is relative to: {example} was looked for"
    return special


def other_name(name: str, folder: str) -> str:
    """How the file of a name that is not there is there; empty where it is not."""
    plain = unquote(name.replace("\\", "/"))
    if plain != name and os.path.isfile(os.path.join(folder, plain)):
        return "with / for \\" if "\\" in name else "without URL-encoding (%20 for a space)"
    base = os.path.basename(plain)
    for place in dict.fromkeys((os.path.dirname(os.path.join(folder, plain)), folder)):
        lower, stems = _listing(place)
        if base in lower.values():
            return "without the folders that file_name gives"
        if base.lower() in lower:
            return "with other letters in upper and lower case"
        if (stem := os.path.splitext(base)[0].lower()) in stems:
            return f"with the extension {stems[stem]}"
    return ""


@cache
def _listing(folder: str) -> tuple[dict[str, str], dict[str, str]]:
    """File names by lower-case name, and extensions by lower-case stem."""
    names = [entry.name for entry in os.scandir(folder) if entry.is_file()] if os.path.isdir(folder) else []
    parts = [os.path.splitext(name) for name in names]
    return {name.lower(): name for name in names}, {stem.lower(): extension for stem, extension in parts}


# Found from the annotations of every image.


def settle_images(file: CocoFile) -> None:
    """Flag images that have no annotations, nothing but crowd, or nothing that can be learned."""
    known = file.image_rows >= 0

    def per_image(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(file.image_rows[known & chosen], minlength=len(file.image_flags))

    some, objects = per_image(known) > 0, per_image(~file.having(CROWD)) > 0
    learned = per_image(file.learned | file.having(NEGATIVE, NO_NUMBERS, NOT_FINITE)) > 0  # those by accident
    usable = (file.image_flags & bits(IMAGE_NO_OBJECT, IMAGE_KEYS, REPEATED_IMAGE_ID)) == 0
    for rule, found in ((NO_ANNOTATIONS, ~some), (ONLY_CROWD, some & ~objects), (EMPTIED, objects & ~learned)):
        file.image_flags[usable & found] |= rule.bit


def without_objects(report: Report, finding: Finding) -> dict[str, str]:
    if report.coverage.settings.filter_empty:
        return {"effect": "leaves them out (DATALOADER.FILTER_EMPTY_ANNOTATIONS is True)"}
    return {"effect": "teaches them as background (DATALOADER.FILTER_EMPTY_ANNOTATIONS is False)"}


# Found in the whole file: each returns examples; one that is empty where there is nothing to show.


def mixed_ids(report: Report) -> list[str]:
    sections = {"images": report.file.image_ids, "categories": report.file.category_ids}
    return [name for name, ids in sections.items() if len({isinstance(id_, str) for id_ in ids if id_ is not None}) > 1]


def bad_categories(report: Report) -> list[str]:
    faults = [category_fault(category) for category in report.file.categories]
    return [f"category number {number} {fault}" for number, fault in enumerate(faults) if fault]


def repeated_ids(report: Report) -> list[str]:
    ids, names = report.file.category_ids, report.file.classes
    return [f"{id_} ({name})" for n, (id_, name) in enumerate(zip(ids, names, strict=True)) if id_ in ids[:n]]


def by_class(report: Report, low: int, high: int) -> list[str]:
    counts = report.file.class_counts
    return [f"{name} ({count})" if count else name for name, count in counts if low <= count < high]


# What each is called, and what training does.

IMAGE_RULES: list[Rule] = []
"""In the order of the report."""
DATASET_RULES: list[Rule] = []
image_rule, dataset_rule = partial(add_rule, IMAGE_RULES), partial(add_rule, DATASET_RULES)

# fmt: off
IMAGE_NO_OBJECT = image_rule("image-no-object", STOPS, "elements of 'images' that are not objects",
    "stops while loading (TypeError)", DROP, bad_entry)
IMAGE_KEYS = image_rule("image-keys", STOPS, "images without id, file_name, height or width",
    "stops while loading (KeyError)", f"complete them, or {DROP}", bad_entry)
IMAGE_SIDES = image_rule("image-size-no-number", STOPS, "images whose height and width are not whole numbers above 0",
    "stops when it comes to the image (SizeMismatchError)", f"write the size of the file, or {DROP}", bad_entry)
MISSING = image_rule("image-missing", STOPS, "images whose file is not there",
    "stops when it comes to the image (FileNotFoundError)", DROP, bad_file, missing_files)
UNREADABLE = image_rule("image-unreadable", STOPS, "image files that cannot be read",
    "stops when it comes to the image", DROP, bad_file, unused)
OTHER_SIZE = image_rule(
    "image-other-size", STOPS, "image files of another size than the JSON says (after EXIF rotation)",
    "stops when it comes to the image (SizeMismatchError)",
    f"annotate the image as it is stored, remove its EXIF orientation, or {DROP}", bad_file, unused)
REPEATED_IMAGE_ID = image_rule("image-id-repeated", HURTS, "images whose id a later image has again",
    "uses the later image, with the annotations of both", "give every image an id of its own", flag_repeats)
REPEATED_FILE = image_rule("image-file-repeated", HURTS, "images whose file another image has had before",
    "shows the file once per entry: objects annotated under one entry are background under the other",
    "merge the entries", flag_repeats)
DEEP = image_rule("image-not-8-bit", HURTS, "image files of more than 8 bits per channel",
    "takes the upper 8 of 16 bits, so that values below 256 are black, and clips floats to 0 ... 255; prediction too",
    "convert them to 8 bits", bad_file)
EMPTIED = image_rule("image-all-unusable", HURTS, "images with annotations none of which can be learned",
    "teaches the whole image as background", "see what is wrong with their annotations", settle_images)
PAGES = image_rule(
    "image-pages", FINE, "image files of several pages", "reads the first page, as prediction does", "", bad_file)
NO_ANNOTATIONS = image_rule(
    "image-without-annotations", FINE, "images without annotations", "", "", settle_images, without_objects)
ONLY_CROWD = image_rule(
    "image-only-crowd", FINE, "images with nothing but crowd regions", "", "", settle_images, without_objects)
ROTATED = image_rule(
    "image-exif", FINE, "images that their EXIF orientation turns", "turns them, as the sizes here were", "", bad_file)

NO_IMAGES = dataset_rule(
    "no-images", STOPS, "no images", "stops (AssertionError: the dataset is empty)", "name another file",
    lambda report: [] if report.file.names else [""])
NO_CATEGORIES = dataset_rule(
    "no-categories", STOPS, "no categories", "stops while loading (KeyError)", "list the categories",
    lambda report: [] if report.file.categories else [""])
NOTHING_TO_LEARN = dataset_rule(
    "nothing-to-learn", STOPS, "no annotation that can be learned", "stops: there is nothing to learn",
    "see what is wrong with the annotations, or name another file",
    lambda report: [""] if report.file.names and not report.file.learned.any() else [])
CATEGORY_KEYS = dataset_rule("category-keys", STOPS, "categories without an id or a name", "stops before it starts",
    "give every category an id and a name that is a string", bad_categories)
MIXED_IDS = dataset_rule(
    "mixed-ids", STOPS, "sections whose ids are of types that do not sort", "stops while loading (TypeError)",
    "use numbers, or strings, for all", mixed_ids)
REPEATED_CATEGORY_ID = dataset_rule("category-id-repeated", HURTS, "categories whose id another has",
    "counts one class too many, which learns nothing, and evaluation stops (AssertionError)",
    "give every category an id of its own", repeated_ids)
REPEATED_NAME = dataset_rule("category-name-repeated", HURTS, "categories whose name another has",
    "learns two classes that nobody can tell apart", "merge or rename them",
    lambda report: [name for name, count in Counter(report.file.classes).items() if count > 1])
NO_INSTANCES = dataset_rule("class-without-instances", HURTS, "classes without an object to learn",
    "learns never to find them; evaluation leaves out classes that its file has no objects of",
    "remove the category, or add objects", lambda report: by_class(report, 0, 1))
FEW_INSTANCES = dataset_rule(
    "class-with-few-instances", FINE, f"classes with fewer than {FEW} objects", "learns them badly", "add objects",
    lambda report: by_class(report, 1, FEW))
POORLY_RECONSTRUCTED = dataset_rule(
    "class-poorly-encoded", HURTS, "classes that no measured encoding reconstructs well",
    "limits the IoU of perfect predictions to what the table says",
    "choose a larger MODEL.MEINST.MASK_SIZE or DIM_MASK",
    lambda report: report.encodings.poor_classes() if report.encodings else [])
# fmt: on

DROPPED_IMAGES = bits(IMAGE_NO_OBJECT, IMAGE_KEYS, IMAGE_SIDES, MISSING, UNREADABLE, OTHER_SIZE)
"""Images that --drop-bad leaves out, with their annotations."""
