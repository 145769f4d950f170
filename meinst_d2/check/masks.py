"""Boxes against their images, masks against their boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from meinst_d2.check import problems as p
from meinst_d2.check.scan import CocoFile
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.instances import make_templates
from meinst_d2.data.parallel import run_shards
from meinst_d2.masks.rle import FEW_POINTS, MALFORMED, NO_MASK, UnusableInstance, runs_of, usable_polygons

CHUNK = 2048
CROSSING = 1.0
"""Pixels by which a box may leave its image: annotations are rounded."""
MISMATCH_PIXELS = 2.0
MISMATCH_SHARE = 0.1
"""A side of a box may be this far from its mask's, in pixels or of the longer side of the box, whichever is more."""
TEMPLATE_SIZE = 28

OF_REASON = {NO_MASK: p.NO_MASK, FEW_POINTS: p.FEW_POINTS, MALFORMED: p.BAD_POLYGON}

Box = tuple[float, float, float, float]


def check_masks(file: CocoFile, workers: int = 1) -> None:
    """Flag annotations whose box or mask cannot be used, or not well.

    Args:
        file: scanned; its flags change.
        workers: processes.
    """
    rows = range(len(file.annotations))
    for part in run_shards(_check_shard, rows, workers, "checking", file, chunk=CHUNK, unit=" annotations"):
        for start, flags in part:
            file.flags[start : start + len(flags)] |= flags


def _check_shard(chunks: Iterator[range], file: CocoFile) -> list[tuple[int, npt.NDArray[np.uint32]]]:
    found = []
    for rows in chunks:
        flags = np.zeros(len(rows), np.uint32)
        candidates = np.flatnonzero(file.learned[rows.start : rows.stop] if rows else ())
        drawn, drawn_at = [], []
        for i in candidates.tolist():
            annotation = file.annotations[rows.start + i]
            if min(annotation.image_size) <= 0:
                continue  # of an image without a size
            problem_bits, clipped = _check(annotation)
            flags[i] = problem_bits
            if not problem_bits & p.LEFT_OUT:
                drawn.append(clipped)
                drawn_at.append(i)
        kept = make_templates(drawn, TEMPLATE_SIZE).kept
        empty = np.setdiff1d(np.arange(len(drawn)), kept)
        flags[np.array(drawn_at, np.int64)[empty]] |= np.uint32(p.EMPTY.bit)
        found.append((rows.start, flags))
    return found


def _check(annotation: InstanceAnnotation) -> tuple[int, InstanceAnnotation]:
    """Its problems, and the annotation with its box as training clips it."""
    height, width = annotation.image_size
    x0, y0, x1, y1 = annotation.box
    flags = 0
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if x1 <= x0 or y1 <= y0:
        flags |= p.NO_AREA.bit
    elif clipped[0] >= clipped[2] or clipped[1] >= clipped[3]:
        flags |= p.OUTSIDE.bit
    elif min(x0, y0, width - x1, height - y1) < -CROSSING:
        flags |= p.CROSSES.bit
    bounds: Box | None = None
    try:
        bounds = mask_bounds(annotation)
    except UnusableInstance as error:
        flags |= OF_REASON[error.reason].bit
    except (ValueError, TypeError):
        flags |= p.BAD_RLE.bit
    if bounds is not None and not flags & p.LEFT_OUT and differ(annotation.box, bounds):
        flags |= p.MISMATCH.bit
    return flags, dataclasses.replace(annotation, box=clipped)


def differ(box: Box, bounds: Box) -> bool:
    """Whether a side of the box is far from where the mask ends."""
    allowed = max(MISMATCH_PIXELS, MISMATCH_SHARE * max(box[2] - box[0], box[3] - box[1]))
    return max(abs(a - b) for a, b in zip(box, bounds, strict=True)) > allowed


def mask_bounds(annotation: InstanceAnnotation) -> Box | None:
    """``xyxy`` of a mask; None without a pixel.

    Raises:
        UnusableInstance: polygons that are none.
        ValueError: an RLE that does not fit the image.
    """
    segmentation = annotation.segmentation
    if isinstance(segmentation, Mapping):
        height, width = annotation.image_size
        return _runs_bounds(runs_of(segmentation, height, width), height)
    points = np.concatenate(usable_polygons(segmentation or ())).reshape(-1, 2)
    return (*points.min(axis=0).tolist(), *points.max(axis=0).tolist())


def _runs_bounds(runs: npt.NDArray[np.int64], height: int) -> Box | None:
    edges = runs.cumsum()
    starts, ends = edges[0::2][: len(runs) // 2], edges[1::2]
    starts, ends = starts[ends > starts], ends[ends > starts]
    if not len(starts):
        return None
    first, last = starts // height, (ends - 1) // height
    if (first != last).any():  # a run that goes on in the next column touches both edges
        rows = (0, height)
    else:
        rows = (int((starts % height).min()), int(((ends - 1) % height).max()) + 1)
    return float(first.min()), float(rows[0]), float(last.max() + 1), float(rows[1])
