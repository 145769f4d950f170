"""The instances of a dataset and their templates.

Everything that may be wrong with an annotation is found here, under a name, so that it can be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation
from meinst_d2.data.coco import corners_of, four_numbers
from meinst_d2.masks.rasterize import BoolArray, crop_bitmask, rasterize_polygons
from meinst_d2.masks.rle import (
    BAD_RLE,
    CROWD,
    EMPTY,
    HUGE_BOX,
    LONGEST_SIDE,
    NO_BOX,
    NO_IMAGE,
    OUTSIDE,
    UnusableInstance,
    bitmask_of,
    crop_rle,
    runs_of,
    usable_polygons,
)


@dataclass
class Templates:
    """Templates of the usable instances, and how many were not, by reason."""

    masks: BoolArray  # (M, S, S)
    kept: npt.NDArray[np.int64]  # (M,) positions of the usable instances among those given
    skipped: Counter[str] = field(default_factory=Counter)


def from_dataset_dicts(dataset_dicts: Iterable[Mapping[str, Any]]) -> AnnotationTable:
    """Every annotation of a dataset in Detectron2's format, in order."""
    return AnnotationTable(from_dict(a, record) for record in dataset_dicts for a in record.get("annotations", ()))


def from_dict(annotation: Mapping[str, Any], record: Mapping[str, Any]) -> InstanceAnnotation:
    """An annotation of a record in Detectron2's format; one without a box has (0, 0, 0, 0)."""
    from detectron2.structures import BoxMode

    box = annotation.get("bbox")
    if box is None or (isinstance(box, list) and annotation["bbox_mode"] == BoxMode.XYWH_ABS):
        corners = corners_of(four_numbers(box))  # a fifth of the time of BoxMode
    else:
        corners = tuple(BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS))
    size, is_crowd = (record["height"], record["width"]), bool(annotation.get("iscrowd", 0))
    return InstanceAnnotation(annotation.get("segmentation"), corners, size, annotation["category_id"], is_crowd)


def count_learnable(dataset_dicts: Iterable[Mapping[str, Any]], *, masks: bool = True) -> tuple[int, Counter[str]]:
    """How many annotations training can learn, and how many it cannot, by reason; nothing is drawn.

    Args:
        dataset_dicts: in Detectron2's format, as its loader made them: what that leaves out is not counted.
        masks: whether masks are learned; without, only boxes matter.
    """
    reasons = Counter(
        why_unusable(from_dict(annotation, record), masks=masks)
        for record in dataset_dicts
        for annotation in record.get("annotations", ())
    )
    return reasons.pop("", 0), reasons


def why_unusable(annotation: InstanceAnnotation, *, masks: bool = True) -> str:
    """Why nothing can be learned from an annotation, as far as can be told without drawing it; empty where it can."""
    try:
        require_box(annotation)
        segmentation = annotation.segmentation
        if not masks:
            return ""
        if isinstance(segmentation, list):
            usable_polygons(segmentation)
        elif isinstance(segmentation, Mapping):
            runs_of(segmentation, *annotation.image_size)
        else:
            bitmask_of(segmentation, annotation.image_size)
    except UnusableInstance as error:
        return error.reason
    except (ValueError, TypeError):
        return BAD_RLE
    return ""


def require_box(annotation: InstanceAnnotation) -> None:
    """Raise an UnusableInstance if the annotation is a crowd region, of no image, or has no box to learn."""
    if annotation.iscrowd:
        raise UnusableInstance(CROWD)
    if annotation.image_size == (0, 0):
        raise UnusableInstance(NO_IMAGE)
    x0, y0, x1, y1 = annotation.box
    if not (x1 > x0 and y1 > y0):
        raise UnusableInstance(NO_BOX)
    if not max(x1 - x0, y1 - y0) <= LONGEST_SIDE:
        raise UnusableInstance(HUGE_BOX)
    if x1 <= 0 or y1 <= 0 or x0 >= annotation.image_size[1] or y0 >= annotation.image_size[0]:
        raise UnusableInstance(OUTSIDE)


def make_templates(annotations: Sequence[InstanceAnnotation], mask_size: int) -> Templates:
    """S x S templates of the usable annotations."""
    boxes = np.array([annotation.box for annotation in annotations], np.float32).reshape(-1, 4)
    masks = np.zeros((len(annotations), mask_size, mask_size), bool)
    usable = np.ones(len(annotations), bool)
    skipped: Counter[str] = Counter()
    polygons, polygon_at = [], []
    for i, annotation in enumerate(annotations):
        segmentation = annotation.segmentation
        try:
            require_box(annotation)
            if isinstance(segmentation, list):
                polygons.append(usable_polygons(segmentation))
                polygon_at.append(i)
            elif isinstance(segmentation, Mapping):
                masks[i] = crop_rle(segmentation, *annotation.image_size, boxes[i], mask_size)
            else:
                masks[i] = crop_bitmask(bitmask_of(segmentation, annotation.image_size), boxes[i], mask_size)
        except (ValueError, TypeError) as error:
            skipped[error.reason if isinstance(error, UnusableInstance) else BAD_RLE] += 1
            usable[i] = False
    masks[polygon_at] = rasterize_polygons(polygons, boxes[polygon_at], mask_size)
    empty = usable & ~masks.any(axis=(1, 2))
    skipped += Counter({EMPTY: int(empty.sum())})  # counts of zero are left out
    kept = (usable & ~empty).nonzero()[0]
    return Templates(masks[kept], kept, skipped)
