"""Rules about annotations: first the functions that find them, then what each is called and what training does.

The effects describe Detectron2's ``load_coco_json`` followed by this project's mapper; tests/check runs both.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from meinst_d2.check import DROP, FINE, HURTS, STOPS, Finding, Flags, Report, Rule, add_rule, bits, in_chunks
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.coco import NUMBERS, is_id, kind_of
from meinst_d2.data.instances import make_templates
from meinst_d2.masks.rle import FEW_POINTS as TOO_FEW
from meinst_d2.masks.rle import UnusableInstance, rle_of, runs_of, set_runs, usable_polygons
from meinst_d2.masks.rle import areas as mask_areas

if TYPE_CHECKING:
    from meinst_d2.check.coco_file import CocoFile

Json = Mapping[str, Any]
Box = tuple[float, float, float, float]
CROSSING = 1.0
"""Pixels by which a box may leave its image: annotations are rounded."""
MISMATCH_PIXELS, MISMATCH_SHARE = 2.0, 0.1
"""A side of a box may be this far from its mask's, in pixels or of the longer side of the box, whichever is more."""
HOLE_SHARE = 0.9
"""Of the area of its filled polygons: an annotation with less in the file means a hole."""
LOOKED_AT = 500
"""Annotations, evenly spaced, that a guess at their common mistake is made from."""

# Found in an element of the file by itself: each returns the rule that it breaks, or None.


def bad_segmentation(annotation: Json) -> Rule | None:
    """What Detectron2's ``load_coco_json`` would do with it; crowd regions only have to be readable."""
    segmentation, is_crowd = annotation.get("segmentation"), bool(annotation.get("iscrowd", 0))
    if not segmentation:
        return None if is_crowd else NO_MASK
    try:
        if isinstance(segmentation, dict):
            counts = segmentation["counts"]
            if isinstance(counts, list):
                height, width = segmentation["size"]
                np.array([*counts, height, width], dtype=np.uint32)
            return None
        good = [len(part) % 2 == 0 and len(part) >= 6 for part in segmentation]
    except (TypeError, KeyError, ValueError, OverflowError):
        return BAD_SEGMENTATION
    if is_crowd and any(good):
        return None
    if (all(good) or not any(good)) and form_of(segmentation):
        return OTHER_FORM
    return None if all(good) else SOME_FEW_POINTS if any(good) else FEW_POINTS


def form_of(segmentation: Any) -> str:
    """The form of a segmentation that is none of COCO's; empty where it looks like polygons or an RLE."""
    if isinstance(segmentation, dict):
        return "" if "size" in segmentation and "counts" in segmentation else "objects without size and counts"
    if not isinstance(segmentation, list) or not segmentation:
        return f"not a list but {kind_of(segmentation)}"
    first = segmentation[0]
    if isinstance(first, dict):
        return "RLEs in a list, [{...}]" if "counts" in first else "lists of objects, [{...}, ...]"
    if not isinstance(first, (list, np.ndarray)):
        return f"flat lists, in which {kind_of(first)} stands where a polygon belongs"
    if len(first) and isinstance(first[0], list):
        return "points in pairs, [[[x, y], ...]]"
    if len(segmentation) > 2 and all(isinstance(p, (list, np.ndarray)) and len(p) == 2 for p in segmentation):
        return "points in pairs, [[x, y], ...]"
    return ""


def bad_box(annotation: Json) -> Rule | None:
    """What the mapper's conversion to float32 would do with it; of a crowd region the box is never read."""
    box = annotation.get("bbox")
    if annotation.get("iscrowd", 0):
        return BAD_BOX if box == [] else None
    try:
        with np.errstate(over="ignore"):
            sides = np.array(box, np.float32)
    except (TypeError, ValueError, OverflowError):
        return BAD_BOX
    if sides.shape != (4,):
        return BAD_BOX
    if not NUMBERS.issuperset(map(type, box)):  # type: ignore[arg-type]
        return NO_NUMBERS
    if not np.isfinite(sides).all():
        return NOT_FINITE
    return NEGATIVE if sides[2] < 0 or sides[3] < 0 else None


def element_flags(annotation: Any) -> int:
    """The rules that an element of 'annotations' breaks by itself."""
    if not isinstance(annotation, dict):
        return NO_OBJECT.bit
    flags = bits(bad_segmentation(annotation), bad_box(annotation))
    return flags | sum(rule.bit for rule in SIMPLE_RULES if rule.find(annotation))


def reference_flags(flags: int, image: int, category: int, repeated: bool) -> int:
    """The flags of an annotation, once the rows of its image and its category are known; -1 is none.

    Detectron2 looks at the annotations of images alone; pycocotools at the keys of all.
    """
    if flags & bits(NO_OBJECT, NO_KEYS):
        return flags
    if image < 0:
        return flags & CROWD.bit | UNKNOWN_IMAGE.bit
    return flags | (UNKNOWN_CATEGORY.bit if category < 0 else 0) | (REPEATED_ID.bit if repeated else 0)


# Found from the box and the mask.


def box_against_image(annotation: InstanceAnnotation) -> Rule | None:
    height, width = annotation.image_size
    x0, y0, x1, y1 = annotation.box
    if x1 <= x0 or y1 <= y0:
        return NO_AREA
    if min(x1, width) <= max(x0, 0) or min(y1, height) <= max(y0, 0):
        return OUTSIDE
    return CROSSES if min(x0, y0, width - x1, height - y1) < -CROSSING else None


def mask_against_box(annotation: InstanceAnnotation) -> Rule | None:
    try:
        bounds = mask_bounds(annotation)
    except UnusableInstance as error:
        return FEW_POINTS if error.reason == TOO_FEW else BAD_POLYGON
    except (ValueError, TypeError):
        return BAD_RLE
    if bounds is None or min(annotation.box[2] - annotation.box[0], annotation.box[3] - annotation.box[1]) <= 0:
        return None
    if isinstance(annotation.segmentation, list) and min(annotation.box) >= 0 and max(annotation.box) <= 1:
        return RELATIVE
    return MISMATCH if differ(annotation.box, bounds) else None


def differ(box: Box, bounds: Box) -> bool:
    """Whether a side of the box is far from where the mask ends."""
    allowed = max(MISMATCH_PIXELS, MISMATCH_SHARE * max(box[2] - box[0], box[3] - box[1]))
    return max(abs(a - b) for a, b in zip(box, bounds, strict=True)) > allowed


def mask_bounds(annotation: InstanceAnnotation) -> Box | None:
    """``xyxy`` of a mask; None without a pixel. Raises a ValueError where it is not a mask of the image."""
    segmentation, (height, width) = annotation.segmentation, annotation.image_size
    if not isinstance(segmentation, Mapping):
        points = np.concatenate(usable_polygons(segmentation or ())).reshape(-1, 2)
        return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
    starts, ends = set_runs(runs_of(segmentation, height, width))
    if not len(starts):
        return None
    top, bottom = (starts % height).min(), ((ends - 1) % height).max() + 1
    if (starts // height != (ends - 1) // height).any():  # a run that continues in the next column touches both edges
        top, bottom = 0, height
    return float(starts[0] // height), float(top), float((ends[-1] - 1) // height + 1), float(bottom)


def hole(annotation: InstanceAnnotation) -> Rule | None:
    if not (isinstance(annotation.segmentation, list) and len(annotation.segmentation) > 1 and annotation.area):
        return None
    with suppress(UnusableInstance):  # a polygon that is absurdly far away
        return HOLE if annotation.area < HOLE_SHARE * filled_area(annotation) else None
    return None


def filled_area(annotation: InstanceAnnotation) -> float:
    return float(mask_areas([rle_of(annotation.segmentation, annotation.image_size)])[0])


def check_masks(file: CocoFile, workers: int = 1) -> None:
    """Flag annotations of a scanned file whose box or mask cannot be used, or not well."""
    given = {"workers": workers, "title": "checking", "unit": " annotations", "chunk": 2048}
    for rows, flags in in_chunks(_mask_flags, len(file.flags), file, **given):
        file.flags[rows] |= flags


def _mask_flags(rows: Sequence[int], file: CocoFile) -> Flags:
    flags = np.zeros(len(rows), np.uint32)
    drawn, drawn_at = [], []
    for i, row in enumerate(rows):
        annotation = file.annotations[row]
        height, width = annotation.image_size
        if file.flags[row] & LEFT_OUT or min(height, width) <= 0:
            continue
        flags[i] = bits(box_against_image(annotation), mask_against_box(annotation))
        if not flags[i] & LEFT_OUT:
            flags[i] |= bits(hole(annotation))
            clipped = np.clip(annotation.box, 0, (width, height, width, height)).tolist()  # as training clips it
            drawn.append(dataclasses.replace(annotation, box=tuple(clipped)))
            drawn_at.append(i)
    empty = np.setdiff1d(np.arange(len(drawn)), make_templates(drawn, mask_size=28).kept)
    flags[np.array(drawn_at, np.int64)[empty]] |= EMPTY.bit
    return flags


# What is special about findings: guesses at the one mistake behind them.


def some(report: Report, rule: Rule) -> list[InstanceAnnotation]:
    """Annotations that break a rule, evenly spaced."""
    rows = np.flatnonzero(report.file.having(rule))
    return [report.file.annotations[row] for row in rows[:: -(-len(rows) // LOOKED_AT)].tolist()]


def box_format(report: Report, finding: Finding) -> dict[str, str]:
    """Whether boxes that do not fit their masks would as corners."""
    found, fitting = some(report, finding.rule), 0
    for annotation in found:
        (x0, y0, x1, y1), bounds = annotation.box, mask_bounds(annotation)
        fitting += bounds is not None and not differ((x0, y0, x1 - x0, y1 - y0), bounds)
    note = "most fit their masks when read as [x0, y0, x1, y1]: COCO's boxes are [x, y, width, height]"
    return {"note": note} if fitting > len(found) / 2 else {}


def rle_size(report: Report, finding: Finding) -> dict[str, str]:
    """Whether sizes are turned round."""
    found = some(report, finding.rule)
    turned = [a for a in found if a.segmentation.get("size") == [*a.image_size[::-1]] != [*a.image_size]]
    note = "most have the size [width, height]: COCO's is [height, width]"
    return {"note": note} if len(turned) > len(found) / 2 else {}


def forms(report: Report, finding: Finding) -> dict[str, str]:
    counts = Counter(form_of(annotation.segmentation) for annotation in some(report, finding.rule))
    return {"note": f"they are {form}"} if (form := counts.most_common(1)[0][0]) else {}


def types_of_ids(report: Report, finding: Finding) -> dict[str, str]:
    """Whether ids that stand for nothing would, as another type."""
    known = report.file.category_ids if finding.rule is UNKNOWN_CATEGORY else report.file.image_ids
    ids, unknown = {str(id_): id_ for id_ in known}, report.file.unknown_ids[finding.rule.key]
    twins = [(id_, ids[str(id_)]) for id_ in unknown if str(id_) in ids]
    if len(twins) <= len(unknown) / 2:
        return {}
    note = f"most differ from an id in their type alone, such as {twins[0][0]!r} from {twins[0][1]!r}"
    return {"note": note, "fix": "write both as numbers, or both as strings"}


def areas(report: Report, finding: Finding) -> dict[str, str]:
    found = some(report, finding.rule)
    by_file, filled = sum(a.area or 0 for a in found), sum(map(filled_area, found))
    return {"note": f"the file gives {by_file:,.0f} pixels as their area, filled they have {filled:,.0f}"}


# What each is called, and what training does.

ANNOTATION_RULES: list[Rule] = []
"""In the order of the report."""
rule = partial(add_rule, ANNOTATION_RULES)
BACKGROUND = "leaves them out with a warning: their pixels are taught as background"
FORMS = """polygons are [[x0, y0, x1, y1, ...]] in pixels, RLEs {"size": [height, width], "counts": ...}"""

# fmt: off
NO_OBJECT = rule("annotation-no-object", STOPS, "elements of 'annotations' that are not objects",
    "stops while loading (TypeError)", DROP, element_flags)
NO_KEYS = rule("annotation-keys", STOPS, "annotations without id, image_id or category_id",
    "stops while loading (KeyError, or TypeError where one is a list)", DROP,
    lambda annotation: not all(is_id(annotation.get(key)) for key in ("id", "image_id", "category_id")))
REPEATED_ID = rule("annotation-id-repeated", STOPS, "annotations whose id another has had before",
    "stops while loading (AssertionError: annotation ids are not unique)",
    "give every annotation its own id; --drop-bad gives them new ones", reference_flags)
UNKNOWN_CATEGORY = rule("unknown-category", STOPS, "annotations of a category that 'categories' does not list",
    "stops while loading (KeyError)", f"add the category, or {DROP}", reference_flags, types_of_ids)
IGNORED = rule("ignore-flag", STOPS, "annotations with 'ignore' set",
    "stops while loading (AssertionError)", f"mark regions to ignore with iscrowd 1, or {DROP}",
    lambda annotation: annotation.get("ignore", 0) != 0)
BAD_BOX = rule("box-unreadable", STOPS, "annotations whose bbox is missing or cannot be read as four numbers",
    "stops when it comes to the image, an empty bbox while loading; evaluation takes the mask's", DROP, bad_box)
BAD_SEGMENTATION = rule(
    "segmentation-unreadable", STOPS, "segmentations that are neither a list of polygons nor an RLE",
    "stops while loading (TypeError, KeyError or ValueError)", f"{FORMS}; {DROP}", bad_segmentation, forms)
UNKNOWN_IMAGE = rule("unknown-image", HURTS, "annotations of an image that 'images' does not list",
    "ignores them, saying how many", f"add the image, or {DROP}", reference_flags, types_of_ids)
NO_MASK = rule("no-segmentation", HURTS, "annotations without a segmentation",
    BACKGROUND, f"draw their masks, mark them iscrowd 1, or {DROP}", bad_segmentation)
OTHER_FORM = rule("segmentation-form", HURTS, "segmentations of another form than COCO's",
    "drops them: their pixels are taught as background", f"{FORMS}; {DROP}", bad_segmentation, forms)
FEW_POINTS = rule("polygon-few-points", HURTS, "annotations none of whose polygons has three points and as many x as y",
    "drops them while loading: their pixels are taught as background", DROP, bad_segmentation)
SOME_FEW_POINTS = rule(
    "polygon-part-few-points", HURTS, "annotations with polygons of fewer than three points, or not as many x as y",
    "drops those parts while loading and learns the others", "remove or redraw the parts", bad_segmentation)
BAD_POLYGON = rule("polygon-no-numbers", HURTS, "annotations with polygons whose coordinates are not finite numbers",
    BACKGROUND, DROP, mask_against_box)
BAD_RLE = rule("rle-wrong-size", HURTS, "RLEs whose size or whose runs do not fit their image",
    BACKGROUND, f"RLE sizes are [height, width]; {DROP}", mask_against_box, rle_size)
NO_NUMBERS = rule("box-no-numbers", HURTS, "boxes some of whose sides are strings, booleans or null",
    "learns strings and booleans as the numbers that they can be read as, and drops boxes with null",
    f"write numbers, or {DROP}", bad_box)
NOT_FINITE = rule("box-not-finite", HURTS, "boxes with NaN or infinite sides",
    "drops those with NaN and clips infinite sides to the image", DROP, bad_box)
NO_AREA = rule("box-without-area", HURTS, "boxes of no width or no height",
    "drops them: their pixels are taught as background", DROP, box_against_image)
NEGATIVE = rule("box-negative", HURTS, "boxes of negative width or height",
    "turns them round and learns a box to the left of or above the point that is given",
    f"bbox is [x, y, width, height]; {DROP}", bad_box)
OUTSIDE = rule("box-outside", HURTS, "boxes wholly outside their image",
    "drops them", f"look whether the image's width and height are swapped, or {DROP}", box_against_image)
CROSSES = rule("box-crosses-edge", HURTS, "boxes that leave their image by more than a pixel",
    "clips them to the image, and their masks to the clipped box", "", box_against_image)
RELATIVE = rule("coordinates-relative", HURTS, "annotations whose box lies between 0 and 1",
    "learns objects smaller than a pixel, which no location is taught to find",
    "coordinates are in pixels: multiply x by the image's width and y by its height", mask_against_box)
MISMATCH = rule("box-not-of-mask", HURTS,
    "boxes whose sides are far from those of their masks (over 2 pixels and a tenth of the box)",
    "learns the box as it is, and of the mask what lies in the box", "compute the boxes from the masks",
    mask_against_box, box_format)
HOLE = rule("polygon-hole", HURTS, "annotations of several polygons that have less area in the file than filled",
    "fills polygons inside of others, as all of COCO's tools do", "write masks with holes as RLEs", hole, areas)
EMPTY = rule("mask-empty", HURTS, "masks without a pixel in their box",
    "learns an empty mask for the box; meinst fit leaves them out", DROP, check_masks)
EVALUATION_KEYS = rule("evaluation-keys", FINE, "annotations without a number as 'area' or without 'iscrowd'",
    "learns them; evaluation takes the area from the mask and iscrowd for 0", "",
    lambda annotation: type(annotation.get("area")) not in NUMBERS or "iscrowd" not in annotation)
CROWD = rule("crowd", FINE, "crowd regions", "leaves them out; evaluation ignores what lies in them", "",
    lambda annotation: bool(annotation.get("iscrowd", 0)))
# fmt: on
SIMPLE_RULES = (NO_KEYS, IGNORED, EVALUATION_KEYS, CROWD)

LEFT_OUT = bits(
    *(NO_OBJECT, NO_KEYS, UNKNOWN_CATEGORY, IGNORED, BAD_BOX, BAD_SEGMENTATION, UNKNOWN_IMAGE, NO_MASK, OTHER_FORM),
    *(FEW_POINTS, BAD_POLYGON, BAD_RLE, NO_NUMBERS, NOT_FINITE, NO_AREA, NEGATIVE, OUTSIDE, CROWD),
)
"""Annotations that training does not learn, or only by accident."""
DROPPED = bits(EMPTY) | LEFT_OUT & ~bits(CROWD)
"""Annotations that --drop-bad leaves out."""
