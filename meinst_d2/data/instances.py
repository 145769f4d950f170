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
from meinst_d2.masks.rasterize import BoolArray, crop_bitmask, rasterize_polygons
from meinst_d2.masks.rle import (
    BAD_RLE,
    CROWD,
    EMPTY,
    HUGE_BOX,
    LONGEST_SIDE,
    NO_BOX,
    NO_IMAGE,
    UnusableInstance,
    bitmask_of,
    crop_rle,
    usable_polygons,
)


@dataclass
class Templates:
    """Templates of the usable instances, and how many were not, by reason.

    Attributes:
        masks: (M, S, S) bool.
        kept: (M,) positions of the usable instances among those given.
        skipped: counts by reason.
    """

    masks: BoolArray
    kept: npt.NDArray[np.int64]
    skipped: Counter[str] = field(default_factory=Counter)


def from_dataset_dicts(dataset_dicts: Iterable[Mapping[str, Any]]) -> AnnotationTable:
    """Every annotation of a dataset in Detectron2's format, in order."""
    from detectron2.structures import BoxMode

    return AnnotationTable(
        InstanceAnnotation(
            annotation.get("segmentation"),
            tuple(BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)),
            (record["height"], record["width"]),
            annotation["category_id"],
            bool(annotation.get("iscrowd", 0)),
        )
        for record in dataset_dicts
        for annotation in record.get("annotations", ())
    )


def make_templates(annotations: Sequence[InstanceAnnotation], mask_size: int) -> Templates:
    """Templates of the usable annotations.

    Args:
        annotations: as the dataset has them.
        mask_size: S.
    """
    boxes = np.array([annotation.box for annotation in annotations], np.float32).reshape(-1, 4)
    masks = np.zeros((len(annotations), mask_size, mask_size), bool)
    usable = np.ones(len(annotations), bool)
    skipped: Counter[str] = Counter()
    polygons, polygon_at = [], []
    for i, annotation in enumerate(annotations):
        try:
            _check_usable(annotation)
            if isinstance(annotation.segmentation, list):
                polygons.append(usable_polygons(annotation.segmentation))
                polygon_at.append(i)
            else:
                masks[i] = _crop(annotation.segmentation, annotation.image_size, boxes[i], mask_size)
        except UnusableInstance as error:
            skipped[error.reason] += 1
            usable[i] = False
    masks[polygon_at] = rasterize_polygons(polygons, boxes[polygon_at], mask_size)
    empty = usable & ~masks.any(axis=(1, 2))
    if empty.any():
        skipped[EMPTY] += int(empty.sum())
    kept = (usable & ~empty).nonzero()[0]
    return Templates(masks[kept], kept, skipped)


def _check_usable(annotation: InstanceAnnotation) -> None:
    if annotation.iscrowd:
        raise UnusableInstance(CROWD)
    if annotation.image_size == (0, 0):
        raise UnusableInstance(NO_IMAGE)
    x0, y0, x1, y1 = annotation.box
    if not (x1 > x0 and y1 > y0):
        raise UnusableInstance(NO_BOX)
    if not max(x1 - x0, y1 - y0) <= LONGEST_SIDE:
        raise UnusableInstance(HUGE_BOX)


def _crop(segmentation: Any, image_size: tuple[int, int], box: npt.NDArray[np.float32], mask_size: int) -> BoolArray:
    """The template of an RLE or of a bit mask."""
    if not isinstance(segmentation, Mapping):
        return crop_bitmask(bitmask_of(segmentation, image_size), box, mask_size)
    try:
        return crop_rle(segmentation, *image_size, box, mask_size)
    except (ValueError, TypeError) as error:
        raise UnusableInstance(BAD_RLE) from error
