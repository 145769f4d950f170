"""Everything that is looked for in images, categories and whole files, with what training does with it.

The effects describe Detectron2's ``load_coco_json`` followed by this project's mapper; tests/check runs both.
"""

from __future__ import annotations

from meinst_d2.check.problem import DROP, FINE, HURTS, STOPS, Problem, bits, numbered

IMAGE_PROBLEMS: list[Problem] = []
"""In the order of the report."""

# Images.
IMAGE_NO_OBJECT = numbered(
    IMAGE_PROBLEMS,
    "image-no-object",
    STOPS,
    "elements of 'images' that are no objects",
    "stops while loading (TypeError)",
    DROP,
)
IMAGE_KEYS = numbered(
    IMAGE_PROBLEMS,
    "image-keys",
    STOPS,
    "images without id, file_name, height or width",
    "stops while loading (KeyError)",
    f"complete them, or {DROP}",
)
IMAGE_SIDES = numbered(
    IMAGE_PROBLEMS,
    "image-size-no-number",
    STOPS,
    "images whose height and width are not whole numbers above 0",
    "stops when it comes to the image (SizeMismatchError)",
    f"write the size of the file, or {DROP}",
)
MISSING = numbered(
    IMAGE_PROBLEMS,
    "image-missing",
    STOPS,
    "images whose file is not there",
    "stops when it comes to the image (FileNotFoundError)",
    DROP,
)
UNREADABLE = numbered(
    IMAGE_PROBLEMS,
    "image-unreadable",
    STOPS,
    "image files that cannot be read",
    "stops when it comes to the image",
    DROP,
)
OTHER_SIZE = numbered(
    IMAGE_PROBLEMS,
    "image-other-size",
    STOPS,
    "image files of another size than the JSON says (after EXIF rotation)",
    "stops when it comes to the image (SizeMismatchError)",
    f"annotate the image as it is stored, remove its EXIF orientation, or {DROP}",
)
REPEATED_IMAGE_ID = numbered(
    IMAGE_PROBLEMS,
    "image-id-repeated",
    HURTS,
    "images whose id a later image has again",
    "uses the later image, with the annotations of both",
    "give every image an id of its own",
)
REPEATED_FILE = numbered(
    IMAGE_PROBLEMS,
    "image-file-repeated",
    HURTS,
    "images whose file another image has had before",
    "shows the file once per entry: objects annotated under one entry are background under the other",
    "merge the entries",
)
DEEP = numbered(
    IMAGE_PROBLEMS,
    "image-not-8-bit",
    HURTS,
    "image files of more than 8 bits per channel",
    "clips their values at 255, which is white nearly everywhere",
    "convert them to 8 bits",
)
EMPTIED = numbered(
    IMAGE_PROBLEMS,
    "image-all-unusable",
    HURTS,
    "images with annotations none of which can be learned",
    "teaches the whole image as background",
    "see what is wrong with their annotations",
)
NO_ANNOTATIONS = numbered(IMAGE_PROBLEMS, "image-without-annotations", FINE, "images without annotations", "")
ONLY_CROWD = numbered(IMAGE_PROBLEMS, "image-only-crowd", FINE, "images with nothing but crowd regions", "")
ROTATED = numbered(
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

DROPPED_IMAGES = bits(IMAGE_NO_OBJECT, IMAGE_KEYS, IMAGE_SIDES, MISSING, UNREADABLE, OTHER_SIZE)
"""Images that --drop-bad leaves out, with their annotations."""
