"""How well encodings redraw the masks of a dataset, with nothing predicted: encode, decode, compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.instances import make_templates
from meinst_d2.data.parallel import run_shards
from meinst_d2.encoding import MaskEncoder
from meinst_d2.masks.metrics import boundary_region, mask_iou
from meinst_d2.masks.paste import stretch
from meinst_d2.masks.rasterize import BoolArray
from meinst_d2.masks.rle import EMPTY
from meinst_d2.reconstruction.encodings import Encoding, redraw_templates
from meinst_d2.reconstruction.own_resolution import SIZES, own_resolution_mask, size_of

CHUNK = 64
"""Annotations at a time: a class-specific encoder gathers a dictionary for each of them."""

COUNT, TEMPLATE_IOU, IOU, BOUNDARY_IOU, FOREGROUND_BOTH, FOREGROUND_EITHER, PIXELS = range(7)
NUM_SUMS = 7


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
        sums: (E, 3, K, 7) float64 by encoding, size and class.
        skipped: annotations without a usable mask, by reason.
    """

    sums: npt.NDArray[np.float64]
    skipped: Counter[str]

    def quality(
        self, encoding: int, size: int | slice = slice(None), classes: int | slice | Sequence[int] = slice(None)
    ) -> Quality:
        """Of the masks of one size (or all) and of some classes (or all); NaN where there are none."""
        sums = self.sums[encoding, size, classes].reshape(-1, NUM_SUMS).sum(axis=0)
        with np.errstate(invalid="ignore"):
            both, either, pixels = sums[[FOREGROUND_BOTH, FOREGROUND_EITHER, PIXELS]]
            pooled = (both / either + (pixels - either) / (pixels - both)) / 2
            template_iou, iou, boundary = sums[[TEMPLATE_IOU, IOU, BOUNDARY_IOU]] / sums[COUNT]
        return Quality(
            count=int(sums[COUNT]),
            template_iou=float(template_iou) if pixels else float("nan"),
            pooled_miou=float(pooled),
            iou=float(iou),
            boundary_iou=float(boundary),
        )


def measure_encodings(
    annotations: Sequence[InstanceAnnotation],
    encodings: Sequence[Encoding],
    num_classes: int,
    workers: int = 1,
) -> Tally:
    """Encode and decode every usable mask with every encoding.

    All encodings are measured on the same masks: those with a pixel in every template and at their own resolution.

    Args:
        annotations: of the dataset, with categories in [0, K).
        encodings: E of them.
        num_classes: K, which class-specific encoders must know.
        workers: processes.
    """
    parts = run_shards(
        _measure_shard, annotations, workers, "measuring masks", tuple(encodings), num_classes, chunk=CHUNK
    )
    return Tally(np.sum([sums for sums, _ in parts], axis=0), sum((skipped for _, skipped in parts), Counter()))


@torch.no_grad()
def _measure_shard(
    chunks: Iterator[Sequence[InstanceAnnotation]], encodings: Sequence[Encoding], num_classes: int
) -> tuple[npt.NDArray[np.float64], Counter[str]]:
    sums = np.zeros((len(encodings), len(SIZES), num_classes, NUM_SUMS))
    skipped: Counter[str] = Counter()
    template_sizes = sorted({e.codec.mask_size for e in encodings if isinstance(e.codec, MaskEncoder)})
    with one_torch_thread():
        for chunk in chunks:
            masks, reasons = read_masks(chunk, template_sizes)
            skipped.update(reasons)
            classes = np.array([chunk[i].category for i in masks.kept], np.int64)
            for row, encoding in zip(sums, encodings, strict=True):
                np.add.at(row, (masks.sizes, classes), _measure(encoding, masks, classes))
    return sums, skipped


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """For workers: there is a process per core already, and OpenMP's threads do not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Masks:
    """Masks to redraw.

    Attributes:
        kept: (M,) positions of the usable annotations among those given.
        sizes: (M,) indices into ``SIZES``.
        full: M masks at their own resolution.
        boundaries: their boundary regions.
        templates: (M, S, S) by S.
    """

    kept: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    full: list[BoolArray]
    boundaries: list[BoolArray]
    templates: dict[int, BoolArray]


def read_masks(annotations: Sequence[InstanceAnnotation], template_sizes: Sequence[int]) -> tuple[Masks, Counter[str]]:
    """The masks of usable annotations, and how many are not, by reason.

    Args:
        annotations: as the dataset has them.
        template_sizes: each S that is needed.
    """
    templates = {size: make_templates(annotations, size) for size in template_sizes or (28,)}
    usable = np.ones(len(annotations), bool)
    for made in templates.values():
        usable &= np.isin(np.arange(len(annotations)), made.kept)
    skipped = Counter(next(iter(templates.values())).skipped)
    full = {i: own_resolution_mask(annotations[i]) for i in usable.nonzero()[0].tolist()}
    kept = [i for i, mask in full.items() if mask.any()]
    lost = len(annotations) - len(kept) - sum(skipped.values())
    if lost:
        skipped[EMPTY] += lost
    return (
        Masks(
            np.array(kept, np.int64),
            np.array([size_of(annotations[i], full[i]) for i in kept], np.int64),
            [full[i] for i in kept],
            [boundary_region(full[i]) for i in kept],
            {size: templates[size].masks[np.isin(templates[size].kept, kept)] for size in template_sizes},
        ),
        skipped,
    )


def _measure(encoding: Encoding, masks: Masks, classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(M, 7) what each mask adds to the sums."""
    added = np.zeros((len(masks.full), NUM_SUMS))
    added[:, COUNT] = 1
    if isinstance(encoding.codec, MaskEncoder):
        templates = masks.templates[encoding.codec.mask_size]
        probabilities = redraw_templates(encoding.codec, templates, classes)
        drawn = probabilities >= 0.5
        both, either = (templates & drawn).sum(axis=(1, 2)), (templates | drawn).sum(axis=(1, 2))
        added[:, TEMPLATE_IOU] = both / either
        added[:, FOREGROUND_BOTH], added[:, FOREGROUND_EITHER] = both, either
        added[:, PIXELS] = templates[:1].size
        redrawn = (stretch(p, *mask.shape) for p, mask in zip(probabilities, masks.full, strict=True))
    else:
        codec = encoding.codec
        redrawn = (codec.decode(codec.encode(mask), *mask.shape) for mask in masks.full)
    for row, mask, boundary, again in zip(added, masks.full, masks.boundaries, redrawn, strict=True):
        row[IOU] = mask_iou(mask, again)
        row[BOUNDARY_IOU] = mask_iou(boundary, boundary_region(again))
    return added
