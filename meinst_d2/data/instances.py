"""The instances of a dataset and their templates.

Everything that may be wrong with an annotation is found here, under a name, so that it can be counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation
from meinst_d2.data.rasterize import BoolArray, crop_bitmask, rasterize_polygons
from meinst_d2.data.rle import crop_rle, decode_rle

CROWD = "crowd region"
NO_MASK = "no segmentation"
FEW_POINTS = "polygon with fewer than 3 points"
NO_BOX = "box without area"
NO_IMAGE = "image that is not in the file"
HUGE_BOX = "box larger than any image"
BAD_RLE = "RLE that does not fit its image"
MALFORMED = "segmentation of an unknown kind"
EMPTY = "mask without a pixel in its box"
REASONS = (CROWD, NO_MASK, FEW_POINTS, NO_BOX, BAD_RLE, MALFORMED, EMPTY, NO_IMAGE, HUGE_BOX)

LONGEST_SIDE = 2.0**20
"""Pixels of a box: what cropping an RLE costs grows with it."""


class UnusableInstance(ValueError):
    """An annotation without a usable mask; ``reason`` is one of this module's names."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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


def usable_polygons(segmentation: Sequence[Any]) -> list[npt.NDArray[np.float64]]:
    """The parts of a polygon segmentation that have at least 3 points, as flat arrays.

    Raises:
        UnusableInstance: there is none, or the coordinates are no numbers.
    """
    if not segmentation:
        raise UnusableInstance(NO_MASK)
    try:
        parts = [np.asarray(part, np.float64) for part in segmentation]
    except (TypeError, ValueError, OverflowError) as error:
        raise UnusableInstance(MALFORMED) from error
    # The sum of squares is finite where all coordinates are, and costs a third of looking at each.
    if any(part.ndim != 1 or not math.isfinite(part.dot(part)) for part in parts):
        raise UnusableInstance(MALFORMED)
    parts = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
    if not parts:
        raise UnusableInstance(FEW_POINTS)
    return parts


def bitmask_of(segmentation: Any, image_size: tuple[int, int]) -> npt.NDArray[Any]:
    """The (H, W) bit mask of an RLE or of a bit mask.

    Raises:
        UnusableInstance: it is neither, or does not fit the image.
    """
    if segmentation is None:
        raise UnusableInstance(NO_MASK)
    if isinstance(segmentation, np.ndarray):
        if segmentation.shape != tuple(image_size):
            raise UnusableInstance(BAD_RLE)
        return segmentation.astype(bool)
    if not isinstance(segmentation, Mapping):
        raise UnusableInstance(MALFORMED)
    try:
        return decode_rle(segmentation, *image_size)
    except (ValueError, TypeError) as error:
        raise UnusableInstance(BAD_RLE) from error
