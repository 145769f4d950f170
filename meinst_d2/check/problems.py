"""Everything that is looked for in annotations, with what training does with it.

The effects describe Detectron2's ``load_coco_json`` followed by this project's mapper; tests/check runs both.
"""

from __future__ import annotations

from meinst_d2.check.problem import DROP, FINE, HURTS, STOPS, Problem, bits, numbered

ANNOTATION_PROBLEMS: list[Problem] = []
"""In the order of the report."""
BACKGROUND = "leaves them out with a warning: their pixels are taught as background"

NO_OBJECT = numbered(
    ANNOTATION_PROBLEMS,
    "annotation-no-object",
    STOPS,
    "elements of 'annotations' that are no objects",
    "stops while loading (TypeError)",
    DROP,
)
NO_KEYS = numbered(
    ANNOTATION_PROBLEMS,
    "annotation-keys",
    STOPS,
    "annotations without id, image_id or category_id",
    "stops while loading (KeyError, or TypeError where one is a list)",
    DROP,
)
REPEATED_ID = numbered(
    ANNOTATION_PROBLEMS,
    "annotation-id-repeated",
    STOPS,
    "annotations whose id another has had before",
    "stops while loading (AssertionError: annotation ids are not unique)",
    "number the annotations anew; --drop-bad gives them new ids",
)
UNKNOWN_CATEGORY = numbered(
    ANNOTATION_PROBLEMS,
    "unknown-category",
    STOPS,
    "annotations of a category that 'categories' does not list",
    "stops while loading (KeyError)",
    f"add the category, or {DROP}",
)
IGNORED = numbered(
    ANNOTATION_PROBLEMS,
    "ignore-flag",
    STOPS,
    "annotations with 'ignore' set",
    "stops while loading (AssertionError)",
    f"mark regions to ignore with iscrowd 1, or {DROP}",
)
BAD_BOX = numbered(
    ANNOTATION_PROBLEMS,
    "box-unreadable",
    STOPS,
    "annotations whose bbox is missing or cannot be read as four numbers",
    "stops when it comes to the image, an empty bbox while loading",
    DROP,
)
BAD_SEGMENTATION = numbered(
    ANNOTATION_PROBLEMS,
    "segmentation-unreadable",
    STOPS,
    "segmentations that are neither a list of polygons nor an RLE with size and counts",
    "stops while loading (TypeError, KeyError or ValueError)",
    f"polygons are lists in a list, [[x0, y0, x1, y1, ...]]; {DROP}",
)
UNKNOWN_IMAGE = numbered(
    ANNOTATION_PROBLEMS,
    "unknown-image",
    HURTS,
    "annotations of an image that 'images' does not list",
    "ignores them, saying how many",
    f"look whether image_id has the type of the images' id, or {DROP}",
)
NO_MASK = numbered(
    ANNOTATION_PROBLEMS,
    "no-segmentation",
    HURTS,
    "annotations without a segmentation",
    BACKGROUND,
    f"draw their masks, mark them iscrowd 1, or {DROP}",
)
FEW_POINTS = numbered(
    ANNOTATION_PROBLEMS,
    "polygon-few-points",
    HURTS,
    "annotations none of whose polygons has three points and as many x as y",
    "drops them while loading: their pixels are taught as background",
    DROP,
)
SOME_FEW_POINTS = numbered(
    ANNOTATION_PROBLEMS,
    "polygon-part-few-points",
    HURTS,
    "annotations some of whose polygons have not three points, or not as many x as y",
    "drops those parts while loading and learns the others",
    "remove or redraw the parts",
)
BAD_POLYGON = numbered(
    ANNOTATION_PROBLEMS,
    "polygon-no-numbers",
    HURTS,
    "annotations with polygons whose coordinates are not finite numbers",
    BACKGROUND,
    DROP,
)
BAD_RLE = numbered(
    ANNOTATION_PROBLEMS,
    "rle-wrong-size",
    HURTS,
    "RLEs whose size or whose runs do not fit their image",
    BACKGROUND,
    f"RLE sizes are [height, width]; {DROP}",
)
NO_NUMBERS = numbered(
    ANNOTATION_PROBLEMS,
    "box-no-numbers",
    HURTS,
    "boxes some of whose sides are texts, booleans or null",
    "learns texts and booleans as the numbers that they can be read as, and drops boxes with null",
    f"write numbers, or {DROP}",
)
NOT_FINITE = numbered(
    ANNOTATION_PROBLEMS,
    "box-not-finite",
    HURTS,
    "boxes with NaN or infinite sides",
    "drops those with NaN and clips infinite sides to the image",
    DROP,
)
NO_AREA = numbered(
    ANNOTATION_PROBLEMS,
    "box-without-area",
    HURTS,
    "boxes of no width or no height",
    "drops them: their pixels are taught as background",
    DROP,
)
NEGATIVE = numbered(
    ANNOTATION_PROBLEMS,
    "box-negative",
    HURTS,
    "boxes of negative width or height",
    "turns them round and learns a box to the left of or above the point that is given",
    f"bbox is [x, y, width, height]; {DROP}",
)
OUTSIDE = numbered(
    ANNOTATION_PROBLEMS,
    "box-outside",
    HURTS,
    "boxes wholly outside their image",
    "drops them",
    f"look whether the image's width and height are swapped, or {DROP}",
)
CROSSES = numbered(
    ANNOTATION_PROBLEMS,
    "box-crosses-edge",
    HURTS,
    "boxes that leave their image by more than a pixel",
    "clips them to the image, and their masks to the clipped box",
)
MISMATCH = numbered(
    ANNOTATION_PROBLEMS,
    "box-not-of-mask",
    HURTS,
    "boxes whose sides are far from those of their masks (over 2 pixels and a tenth of the box)",
    "learns the box as it is, and of the mask what lies in the box",
    "compute the boxes from the masks",
)
EMPTY = numbered(
    ANNOTATION_PROBLEMS,
    "mask-empty",
    HURTS,
    "masks without a pixel in their box",
    "learns an empty mask for the box; meinst fit leaves them out",
    DROP,
)
NO_CELL = numbered(
    ANNOTATION_PROBLEMS,
    "too-small",
    HURTS,
    "objects too small or too thin to hold the centre of a cell of their feature level",
    "teaches no location to find them: they are background to the detector",
    "train on larger images (INPUT.MIN_SIZE_TRAIN) or on tiles",
)
OUTDONE = numbered(
    ANNOTATION_PROBLEMS,
    "outdone",
    HURTS,
    "objects all of whose cells belong to smaller or earlier objects",
    "teaches no location to find them",
    "larger images (INPUT.MIN_SIZE_TRAIN) have more cells; look for objects that are annotated twice",
)
NOT_FOR_EVALUATION = numbered(
    ANNOTATION_PROBLEMS,
    "evaluation-keys",
    HURTS,
    "annotations without a number as 'area' or without 'iscrowd'",
    "learns them, but evaluation on this file stops (KeyError)",
    "write area (pixels) and iscrowd 0",
)
ZERO_ID = numbered(
    ANNOTATION_PROBLEMS,
    "annotation-id-zero",
    HURTS,
    "annotations with the id 0",
    "learns them, but COCO's evaluation counts what finds them as wrong",
    "number annotations from 1",
)
CROWD = numbered(
    ANNOTATION_PROBLEMS, "crowd", FINE, "crowd regions", "leaves them out; evaluation ignores what lies in them"
)

LEFT_OUT = bits(
    NO_OBJECT, NO_KEYS, UNKNOWN_CATEGORY, IGNORED, BAD_BOX, BAD_SEGMENTATION, UNKNOWN_IMAGE, NO_MASK, FEW_POINTS,
    BAD_POLYGON, BAD_RLE, NO_NUMBERS, NOT_FINITE, NO_AREA, NEGATIVE, OUTSIDE, CROWD,
)  # fmt: skip
"""Annotations that training does not learn, or only by accident."""
DROPPED = bits(EMPTY) | LEFT_OUT & ~bits(CROWD)
"""Annotations that --drop-bad leaves out."""
