"""Everything that is looked for, with what training does with it.

The effects describe Detectron2's ``load_coco_json`` followed by this project's mapper; tests/check runs both.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.IntEnum):
    """How bad it is; also the exit status of the command."""

    FINE = 0
    HURTS = 1
    STOPS = 2


@dataclass(frozen=True)
class Problem:
    """A kind of problem.

    Attributes:
        key: short name, in reports.
        severity: how bad one of them is.
        title: what it is, of several.
        effect: what training does with it.
        remedy: the way out; empty where nothing needs to be done.
        bit: in the flags of annotations or images; 0 for the others.
    """

    key: str
    severity: Severity
    title: str
    effect: str
    remedy: str = ""
    bit: int = 0


ANNOTATION_PROBLEMS: list[Problem] = []
IMAGE_PROBLEMS: list[Problem] = []


def _of(problems: list[Problem], key: str, severity: Severity, title: str, effect: str, remedy: str = "") -> Problem:
    problem = Problem(key, severity, title, effect, remedy, 1 << len(problems))
    problems.append(problem)
    return problem


def bits(*problems: Problem) -> int:
    """The flags of any of the problems."""
    return sum({problem.bit for problem in problems})


STOPS, HURTS, FINE = Severity.STOPS, Severity.HURTS, Severity.FINE
DROP = "--drop-bad leaves them out"
BACKGROUND = "leaves them out with a warning: their pixels are taught as background"

# Annotations, in the order of the report.
NO_OBJECT = _of(
    ANNOTATION_PROBLEMS,
    "annotation-no-object",
    STOPS,
    "elements of 'annotations' that are no objects",
    "stops while loading (TypeError)",
    DROP,
)
NO_KEYS = _of(
    ANNOTATION_PROBLEMS,
    "annotation-keys",
    STOPS,
    "annotations without id, image_id or category_id",
    "stops while loading (KeyError, or TypeError where one is a list)",
    DROP,
)
REPEATED_ID = _of(
    ANNOTATION_PROBLEMS,
    "annotation-id-repeated",
    STOPS,
    "annotations whose id another has had before",
    "stops while loading (AssertionError: annotation ids are not unique)",
    "number the annotations anew; --drop-bad gives them new ids",
)
UNKNOWN_CATEGORY = _of(
    ANNOTATION_PROBLEMS,
    "unknown-category",
    STOPS,
    "annotations of a category that 'categories' does not list",
    "stops while loading (KeyError)",
    f"add the category, or {DROP}",
)
IGNORED = _of(
    ANNOTATION_PROBLEMS,
    "ignore-flag",
    STOPS,
    "annotations with 'ignore' set",
    "stops while loading (AssertionError)",
    f"mark regions to ignore with iscrowd 1, or {DROP}",
)
BAD_BOX = _of(
    ANNOTATION_PROBLEMS,
    "box-unreadable",
    STOPS,
    "annotations whose bbox is missing or not four numbers",
    "stops when it comes to the image, an empty bbox while loading",
    DROP,
)
BAD_SEGMENTATION = _of(
    ANNOTATION_PROBLEMS,
    "segmentation-unreadable",
    STOPS,
    "segmentations that are neither a list of polygons nor an RLE with size and counts",
    "stops while loading (TypeError, KeyError or ValueError)",
    f"polygons are lists in a list, [[x0, y0, x1, y1, ...]]; {DROP}",
)
UNKNOWN_IMAGE = _of(
    ANNOTATION_PROBLEMS,
    "unknown-image",
    HURTS,
    "annotations of an image that 'images' does not list",
    "ignores them, saying how many",
    f"look whether image_id has the type of the images' id, or {DROP}",
)
NO_MASK = _of(
    ANNOTATION_PROBLEMS,
    "no-segmentation",
    HURTS,
    "annotations without a segmentation",
    BACKGROUND,
    f"draw their masks, mark them iscrowd 1, or {DROP}",
)
FEW_POINTS = _of(
    ANNOTATION_PROBLEMS,
    "polygon-few-points",
    HURTS,
    "annotations none of whose polygons has three points and as many x as y",
    "drops them while loading: their pixels are taught as background",
    DROP,
)
SOME_FEW_POINTS = _of(
    ANNOTATION_PROBLEMS,
    "polygon-part-few-points",
    HURTS,
    "annotations some of whose polygons have not three points, or not as many x as y",
    "drops those parts while loading and learns the others",
    "remove or redraw the parts",
)
BAD_POLYGON = _of(
    ANNOTATION_PROBLEMS,
    "polygon-no-numbers",
    HURTS,
    "annotations with polygons whose coordinates are not finite numbers",
    BACKGROUND,
    DROP,
)
BAD_RLE = _of(
    ANNOTATION_PROBLEMS,
    "rle-wrong-size",
    HURTS,
    "RLEs whose size or whose runs do not fit their image",
    BACKGROUND,
    f"RLE sizes are [height, width]; {DROP}",
)
NOT_FINITE = _of(
    ANNOTATION_PROBLEMS,
    "box-not-finite",
    HURTS,
    "boxes with NaN or infinite sides",
    "drops those with NaN and clips infinite sides to the image",
    DROP,
)
NO_AREA = _of(
    ANNOTATION_PROBLEMS,
    "box-without-area",
    HURTS,
    "boxes of no width or no height",
    "drops them: their pixels are taught as background",
    DROP,
)
NEGATIVE = _of(
    ANNOTATION_PROBLEMS,
    "box-negative",
    HURTS,
    "boxes of negative width or height",
    "turns them round and learns a box to the left of or above the point that is given",
    f"bbox is [x, y, width, height]; {DROP}",
)
OUTSIDE = _of(
    ANNOTATION_PROBLEMS,
    "box-outside",
    HURTS,
    "boxes wholly outside their image",
    "drops them",
    f"look whether the image's width and height are swapped, or {DROP}",
)
CROSSES = _of(
    ANNOTATION_PROBLEMS,
    "box-crosses-edge",
    HURTS,
    "boxes that leave their image by more than a pixel",
    "clips them to the image, and their masks to the clipped box",
)
MISMATCH = _of(
    ANNOTATION_PROBLEMS,
    "box-not-of-mask",
    HURTS,
    "boxes whose sides are far from those of their masks (over 2 pixels and a tenth of the box)",
    "learns the box as it is, and of the mask what lies in the box",
    "compute the boxes from the masks",
)
EMPTY = _of(
    ANNOTATION_PROBLEMS,
    "mask-empty",
    HURTS,
    "masks without a pixel in their box",
    "learns an empty mask for the box; fit_pca.py leaves them out",
    DROP,
)
NO_CELL = _of(
    ANNOTATION_PROBLEMS,
    "too-small",
    HURTS,
    "objects too small or too thin to hold the centre of a cell of their feature level",
    "teaches no location to find them: they are background to the detector",
    "train on larger images (INPUT.MIN_SIZE_TRAIN) or on tiles",
)
OUTDONE = _of(
    ANNOTATION_PROBLEMS,
    "outdone",
    HURTS,
    "objects all of whose cells belong to smaller or earlier objects",
    "teaches no location to find them",
    "larger images (INPUT.MIN_SIZE_TRAIN) have more cells; look for objects that are annotated twice",
)
NOT_FOR_EVALUATION = _of(
    ANNOTATION_PROBLEMS,
    "evaluation-keys",
    HURTS,
    "annotations without a number as 'area' or without 'iscrowd'",
    "learns them, but evaluation on this file stops (KeyError)",
    "write area (pixels) and iscrowd 0",
)
ZERO_ID = _of(
    ANNOTATION_PROBLEMS,
    "annotation-id-zero",
    HURTS,
    "annotations with the id 0",
    "learns them, but COCO's evaluation counts what finds them as wrong",
    "number annotations from 1",
)
CROWD = _of(
    ANNOTATION_PROBLEMS, "crowd", FINE, "crowd regions", "leaves them out; evaluation ignores what lies in them"
)

# Images.
IMAGE_NO_OBJECT = _of(
    IMAGE_PROBLEMS,
    "image-no-object",
    STOPS,
    "elements of 'images' that are no objects",
    "stops while loading (TypeError)",
    DROP,
)
IMAGE_KEYS = _of(
    IMAGE_PROBLEMS,
    "image-keys",
    STOPS,
    "images without id, file_name, height or width",
    "stops while loading (KeyError)",
    f"complete them, or {DROP}",
)
IMAGE_SIDES = _of(
    IMAGE_PROBLEMS,
    "image-size-no-number",
    STOPS,
    "images whose height and width are not whole numbers above 0",
    "stops when it comes to the image (SizeMismatchError)",
    f"write the size of the file, or {DROP}",
)
MISSING = _of(
    IMAGE_PROBLEMS,
    "image-missing",
    STOPS,
    "images whose file is not there",
    "stops when it comes to the image (FileNotFoundError)",
    DROP,
)
UNREADABLE = _of(
    IMAGE_PROBLEMS,
    "image-unreadable",
    STOPS,
    "image files that cannot be read",
    "stops when it comes to the image",
    DROP,
)
OTHER_SIZE = _of(
    IMAGE_PROBLEMS,
    "image-other-size",
    STOPS,
    "image files of another size than the file says (after EXIF rotation)",
    "stops when it comes to the image (SizeMismatchError)",
    f"annotate the image as it is stored, remove its EXIF orientation, or {DROP}",
)
REPEATED_IMAGE_ID = _of(
    IMAGE_PROBLEMS,
    "image-id-repeated",
    HURTS,
    "images whose id a later image has again",
    "uses the later image, with the annotations of both",
    "give every image an id of its own",
)
REPEATED_FILE = _of(
    IMAGE_PROBLEMS,
    "image-file-repeated",
    HURTS,
    "images whose file another image has had before",
    "shows the file once per entry: objects annotated under one entry are background under the other",
    "merge the entries",
)
DEEP = _of(
    IMAGE_PROBLEMS,
    "image-not-8-bit",
    HURTS,
    "image files of more than 8 bits per channel",
    "clips their values at 255, which is white nearly everywhere",
    "convert them to 8 bits",
)
EMPTIED = _of(
    IMAGE_PROBLEMS,
    "image-all-unusable",
    HURTS,
    "images with annotations none of which can be learned",
    "teaches the whole image as background",
    "see what is wrong with their annotations",
)
NO_ANNOTATIONS = _of(IMAGE_PROBLEMS, "image-without-annotations", FINE, "images without annotations", "")
ONLY_CROWD = _of(IMAGE_PROBLEMS, "image-only-crowd", FINE, "images with nothing but crowd regions", "")
ROTATED = _of(
    IMAGE_PROBLEMS, "image-exif", FINE, "images that their EXIF orientation turns", "turns them, as the sizes here were"
)

# The others.
NO_IMAGES = Problem("no-images", STOPS, "images", "stops (AssertionError: the dataset is empty)", "name another file")
NO_CATEGORIES = Problem("no-categories", STOPS, "categories", "stops while loading (KeyError)", "list the categories")
NOTHING_TO_LEARN = Problem(
    "nothing-to-learn",
    STOPS,
    "annotations that are no crowd",
    "stops: every image is left out (AssertionError: no valid data)",
    "name another file",
)
CATEGORY_KEYS = Problem(
    "category-keys", STOPS, "categories without id or name", "stops while loading (KeyError)", "give them both"
)
MIXED_IDS = Problem(
    "mixed-ids",
    STOPS,
    "sections whose ids are of types that do not sort",
    "stops while loading (TypeError)",
    "use numbers",
)
REPEATED_CATEGORY_ID = Problem(
    "category-id-repeated",
    HURTS,
    "categories whose id another has",
    "counts one class too many, which learns nothing, and evaluation stops (AssertionError)",
    "give every category an id of its own",
)
REPEATED_NAME = Problem(
    "category-name-repeated",
    HURTS,
    "categories whose name another has",
    "learns two classes that nobody can tell apart",
    "merge or rename them",
)
NO_INSTANCES = Problem(
    "class-without-instances",
    HURTS,
    "classes without an object to learn",
    "learns never to find them; evaluation leaves out classes that its file has no objects of",
    "remove the category, or add objects",
)
FEW_INSTANCES = Problem(
    "class-with-few-instances", FINE, "classes with fewer than 10 objects", "learns them badly", "add objects"
)
POORLY_REDRAWN = Problem(
    "class-poorly-encoded",
    HURTS,
    "classes that no measured encoding redraws well",
    "limits the IoU of perfect predictions to what the table says",
    "choose a larger MODEL.MEINST.MASK_SIZE or DIM_MASK",
)

LEFT_OUT = bits(
    NO_OBJECT, NO_KEYS, UNKNOWN_CATEGORY, IGNORED, BAD_BOX, BAD_SEGMENTATION, UNKNOWN_IMAGE, NO_MASK, FEW_POINTS,
    BAD_POLYGON, BAD_RLE, NOT_FINITE, NO_AREA, NEGATIVE, OUTSIDE, CROWD,
)  # fmt: skip
"""Annotations that training does not learn, or only by accident."""
DROPPED = bits(EMPTY) | LEFT_OUT & ~bits(CROWD)
"""Annotations that --drop-bad leaves out."""
DROPPED_IMAGES = bits(IMAGE_NO_OBJECT, IMAGE_KEYS, IMAGE_SIDES, MISSING, UNREADABLE, OTHER_SIZE)
"""Images that --drop-bad leaves out, with their annotations."""
