"""How well encodings reconstruct the masks of a dataset, with nothing predicted: encode, decode, compare.

Whatever is added up is a whole number, so no sum depends on the order of the masks, or on how they are split over
processes. Symbols: M masks, E encodings, K classes, S mask side.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.instances import make_templates
from meinst_d2.data.parallel import run_shards
from meinst_d2.encoding import MaskEncoder
from meinst_d2.masks.metrics import boundary_region, mask_iou
from meinst_d2.masks.paste import stretch
from meinst_d2.masks.rasterize import BoolArray, IntArray, crop_bitmask
from meinst_d2.masks.rle import EMPTY, UnusableInstance, bitmask_of, decode_rle, rle_of, usable_polygons
from meinst_d2.reconstruction.encodings import Encoding, reconstruct_templates

CHUNK, TEMPLATES_ONLY_CHUNK = 64, 4096
"""Annotations at a time: masks at their own resolution are large, templates are small."""
SIZES = ("small", "medium", "large")
SIZE_LIMITS = (32**2, 96**2)
"""Between them, in pixels of area: COCO's."""
LONGEST_SIDE = 320
"""Pixels of the longer side of a box above which its mask is scaled down."""

COUNT, TEMPLATE_IOU, IOU, BOUNDARY_IOU, FOREGROUND_BOTH, FOREGROUND_EITHER, PIXELS, NUM_SUMS = range(8)
IOU_UNIT = 2.0**-32
"""The three IoU are added up in whole units of this; 2**31 masks fit."""


@dataclass(frozen=True)
class Quality:
    """How alike masks and their reconstructions are. Each of the four says something else.

    Attributes:
        count: masks.
        template_iou: mean over masks of the IoU at S x S, between the template and its reconstruction; NaN without a
            template.
        pooled_miou: mean of the IoU of background and of foreground at S x S, each over all pixels of all masks: the
            published tool's metric. NaN without a template.
        iou: mean over masks of the IoU at the object's own resolution.
        boundary_iou: the same of the boundary regions.
    """

    count: int
    template_iou: float
    pooled_miou: float
    iou: float
    boundary_iou: float


@dataclass
class Tally:
    """Sums over masks, from which the quality of any group of them follows.

    Attributes:
        sums: (E, 3, K, 7) int64 by encoding, size and class; IoU in units of ``IOU_UNIT``.
        skipped: annotations without a usable mask, by reason.
    """

    sums: IntArray
    skipped: Counter[str]

    def quality(
        self, encoding: int, size: int | slice = slice(None), classes: int | slice | Sequence[int] = slice(None)
    ) -> Quality:
        """Quality of the masks of one size (or all) and of some classes (or all); NaN where there are none."""
        sums = self.sums[encoding, size, classes].reshape(-1, NUM_SUMS).sum(axis=0)
        with np.errstate(invalid="ignore"):
            both, either, pixels = sums[[FOREGROUND_BOTH, FOREGROUND_EITHER, PIXELS]]
            pooled = float(both / either + (pixels - either) / (pixels - both)) / 2
            template, iou, boundary = (sums[[TEMPLATE_IOU, IOU, BOUNDARY_IOU]] * IOU_UNIT / sums[COUNT]).tolist()
        return Quality(int(sums[COUNT]), template if pixels else math.nan, pooled, iou, boundary)


def measure_encodings(
    annotations: Sequence[InstanceAnnotation],
    encodings: Sequence[Encoding],
    num_classes: int | None,
    workers: int = 1,
    *,
    templates_only: bool = False,
) -> Tally:
    """Encode and decode every usable mask with every encoding.

    All encodings are measured on the same masks: those with a pixel in every template and at their own resolution.

    Args:
        annotations: of the dataset, with categories in [0, K); those of other categories are left out.
        encodings: E of them.
        num_classes: K, which class-specific encoders must know; None takes all categories for one class.
        workers: processes.
        templates_only: measure at S x S only, which takes a tenth of the time; the sizes are then not told apart.
    """
    settings = tuple(encodings), num_classes, templates_only
    chunk = TEMPLATES_ONLY_CHUNK if templates_only else CHUNK
    parts = run_shards(_measure_shard, annotations, workers, "measuring masks", *settings, chunk=chunk)
    return Tally(np.sum([sums for sums, _ in parts], axis=0), sum((skipped for _, skipped in parts), Counter()))


@torch.no_grad()
def _measure_shard(
    chunks: Iterator[Sequence[InstanceAnnotation]],
    encodings: Sequence[Encoding],
    num_classes: int | None,
    templates_only: bool,
) -> tuple[IntArray, Counter[str]]:
    sums = np.zeros((len(encodings), len(SIZES), num_classes or 1, NUM_SUMS), np.int64)
    skipped: Counter[str] = Counter()
    template_sizes = {e.codec.mask_size for e in encodings if isinstance(e.codec, MaskEncoder)} or {28}
    for chunk in chunks:
        if num_classes is not None:
            chunk = [annotation for annotation in chunk if 0 <= annotation.category < num_classes]
        templates = {size: make_templates(chunk, size) for size in sorted(template_sizes)}
        reasons = next(iter(templates.values())).skipped
        kept = functools.reduce(np.intersect1d, [found.kept for found in templates.values()]).tolist()
        full = {} if templates_only else {i: own_resolution_mask(chunk[i]) for i in kept}
        kept = [i for i in kept if templates_only or full[i].any()]  # M of them
        skipped.update(reasons)
        skipped[EMPTY] += len(chunk) - len(kept) - reasons.total()
        masks = {size: found.masks[np.isin(found.kept, kept)] for size, found in templates.items()}  # (M, S, S)
        full_masks = [full[i] for i in kept if full]
        boundaries = [boundary_region(mask) for mask in full_masks]
        sizes = np.array([size_of(chunk[i], full[i]) if full else 0 for i in kept], np.int64)
        classes = np.array([chunk[i].category if num_classes else 0 for i in kept], np.int64)
        for row, encoding in zip(sums, encodings, strict=True):
            size = encoding.codec.mask_size if isinstance(encoding.codec, MaskEncoder) else min(template_sizes)
            np.add.at(row, (sizes, classes), _measure(encoding, masks[size], classes, full_masks, boundaries))
    return sums, +skipped


def _measure(
    encoding: Encoding, templates: BoolArray, classes: IntArray, masks: list[BoolArray], boundaries: list[BoolArray]
) -> IntArray:
    """(M, 7) what is added to the sums for (M, S, S) templates and M masks (or none) at their own resolution."""
    added = np.zeros((len(templates), NUM_SUMS), np.int64)
    added[:, COUNT] = 1
    codec = encoding.codec
    if isinstance(codec, MaskEncoder):
        probabilities = reconstruct_templates(codec, templates, classes)
        again = probabilities >= 0.5
        both, either = (templates & again).sum(axis=(1, 2)), (templates | again).sum(axis=(1, 2))  # (M,)
        added[:, TEMPLATE_IOU] = np.rint(both / either / IOU_UNIT)
        added[:, FOREGROUND_BOTH], added[:, FOREGROUND_EITHER] = both, either
        added[:, PIXELS] = templates[:1].size
        reconstructed = (stretch(p, *mask.shape) for p, mask in zip(probabilities, masks, strict=False))
    else:
        reconstructed = (codec.decode(codec.encode(mask), *mask.shape) for mask in masks)
    for row, mask, boundary, other in zip(added, masks, boundaries, reconstructed, strict=False):
        row[IOU] = round(mask_iou(mask, other) / IOU_UNIT)
        row[BOUNDARY_IOU] = round(mask_iou(boundary, boundary_region(other)) / IOU_UNIT)
    return added


def own_resolution_mask(annotation: InstanceAnnotation) -> BoolArray:
    """(height, width) of the box: the mask with a pixel per pixel of the image, or fewer where that is over 320 a side.

    The annotation must be usable, see :func:`meinst_d2.data.instances.make_templates`; sides are at least 1.
    """
    x0, y0, x1, y1 = (float(v) for v in annotation.box)
    scale = min(1.0, LONGEST_SIDE / max(x1 - x0, y1 - y0))
    width, height = (max(1, round(side * scale)) for side in (x1 - x0, y1 - y0))
    if not isinstance(annotation.segmentation, list):
        mask = bitmask_of(annotation.segmentation, annotation.image_size)
        return crop_bitmask(mask, annotation.box, height, width)
    ratio = np.array([width / (x1 - x0), height / (y1 - y0)])
    parts = [((part.reshape(-1, 2) - (x0, y0)) * ratio).ravel() for part in usable_polygons(annotation.segmentation)]
    try:
        return decode_rle(rle_of(parts, (height, width)), height, width).astype(np.bool_)
    except UnusableInstance:  # too long to draw at this size: empty, as rasterize_polygons leaves it
        return np.zeros((height, width), np.bool_)


def size_of(annotation: InstanceAnnotation, mask: BoolArray) -> int:
    """Index into ``SIZES``, by the annotation's area as COCO's evaluation has it; without one, by the (H, W) mask's
    share of the box.
    """
    area, (x0, y0, x1, y1) = annotation.area, annotation.box
    if area is None:
        area = float(mask.mean() * (x1 - x0) * (y1 - y0))
    return sum(area >= limit for limit in SIZE_LIMITS)
