"""What is wrong with an annotation by itself, before its image and its category are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from meinst_d2.check import problems as p

LARGEST_SIDE = 2**31


def annotation_flags(annotation: Mapping[str, Any]) -> int:
    """The problems of an annotation by itself."""
    crowd = bool(annotation.get("iscrowd", 0))
    flags = p.CROWD.bit if crowd else 0
    if not all(is_key(annotation.get(key)) for key in ("id", "image_id", "category_id")):
        flags |= p.NO_KEYS.bit
    if annotation.get("ignore", 0) != 0:
        flags |= p.IGNORED.bit
    flags |= _segmentation_flags(annotation.get("segmentation"), crowd)
    flags |= _box_flags(annotation.get("bbox"), crowd)
    if not _is_number(annotation.get("area")) or "iscrowd" not in annotation:
        flags |= p.NOT_FOR_EVALUATION.bit
    if annotation.get("id") == 0:
        flags |= p.ZERO_ID.bit
    return flags


def _segmentation_flags(segmentation: Any, crowd: bool) -> int:
    """What Detectron2's ``load_coco_json`` would do with it; crowd regions only have to be readable."""
    if not segmentation:
        return 0 if crowd else p.NO_MASK.bit
    try:
        if isinstance(segmentation, dict):
            counts = segmentation["counts"]
            if isinstance(counts, list):
                height, width = segmentation["size"]
                np.array([*counts, height, width], dtype=np.uint32)
            return 0
        good = [len(part) % 2 == 0 and len(part) >= 6 for part in segmentation]
    except (TypeError, KeyError, ValueError, OverflowError):
        return p.BAD_SEGMENTATION.bit
    if all(good) or (crowd and any(good)):
        return 0
    return p.SOME_FEW_POINTS.bit if any(good) else p.FEW_POINTS.bit


def _box_flags(box: Any, crowd: bool) -> int:
    """What the mapper's conversion to float32 would do with it; of a crowd region the box is never read."""
    if crowd:
        return p.BAD_BOX.bit if box == [] else 0
    try:
        with np.errstate(over="ignore"):
            sides = np.array(box, np.float32)
    except (TypeError, ValueError, OverflowError):
        return p.BAD_BOX.bit
    if sides.shape != (4,):
        return p.BAD_BOX.bit
    if not all(_is_number(side) for side in box):
        return p.NO_NUMBERS.bit
    width, height = box[2:]
    if not np.isfinite(sides).all():
        return p.NOT_FINITE.bit
    if width < 0 or height < 0:
        return p.NEGATIVE.bit
    return 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_key(value: Any) -> bool:
    """Whether it can be an id."""
    return isinstance(value, (int, float, str))


def is_side(value: Any) -> bool:
    """Whether it can be the height or the width of an image."""
    return _is_number(value) and 0 < value < LARGEST_SIDE and value == int(value)
