"""Which objects get no location of the feature levels, assigned as in training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge

from meinst_d2.check import problems as p
from meinst_d2.check.scan import CocoFile
from meinst_d2.fcos.assign import AssignmentRule, assign_batch

BATCH = 64
"""Images at a time."""


@dataclass(frozen=True)
class Settings:
    """What matters of a config.

    Attributes:
        rule: of the assignment.
        min_size, max_size: of test images.
        filter_empty: whether training leaves out images without objects.
    """

    rule: AssignmentRule
    min_size: int
    max_size: int
    filter_empty: bool


def settings_of(cfg: CfgNode) -> Settings:
    """The settings of a config."""
    meinst = cfg.MODEL.MEINST
    rule = AssignmentRule(
        strides=tuple(2 ** int(name.removeprefix("p")) for name in meinst.IN_FEATURES),
        size_bounds=tuple(meinst.SIZES_OF_INTEREST),
        center_radius=meinst.CENTER_SAMPLING_RADIUS if meinst.CENTER_SAMPLING else None,
    )
    return Settings(rule, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


@dataclass(frozen=True)
class Coverage:
    """How the objects spread over the feature levels.

    Attributes:
        settings: that they were assigned with.
        objects: those assigned.
        per_level: (L,) objects with a positive location on each level; an object may have some on two.
        sides: (3,) quantiles 5, 50 and 95 % of the square root of the box area, in input pixels.
    """

    settings: Settings
    objects: int
    per_level: tuple[int, ...]
    sides: tuple[float, float, float]


def measure_coverage(file: CocoFile, settings: Settings) -> Coverage:
    """Assign all objects as training does at the test size, and flag those without a positive location.

    Args:
        file: scanned and checked; its flags change.
        settings: of the config.
    """
    chosen = np.flatnonzero(file.learned)
    chosen = chosen[(file.sizes[file.image_rows[chosen]] > 0).all(axis=1)]
    chosen = chosen[file.image_rows[chosen].argsort(kind="stable")]
    per_level = np.zeros(len(settings.rule.strides), np.int64)
    sides = [np.zeros(0, np.float32)]
    for rows, boxes, counts, shape in _batches(file, chosen, settings):
        levels = [(-(-shape[0] // stride), -(-shape[1] // stride)) for stride in settings.rule.strides]
        starts = np.cumsum([0, *(height * width for height, width in levels)])
        positives = assign_batch(boxes.split(counts), levels, settings.rule)
        gt, location = positives.gt_idx.numpy(), positives.location_idx.numpy()
        level = starts.searchsorted(location, side="right") - 1
        for k in range(len(levels)):
            per_level[k] += len(np.unique(gt[level == k]))
        lost = np.setdiff1d(np.arange(len(rows)), gt)
        alone = assign_batch(boxes[lost].split(1), levels, settings.rule).gt_idx.unique().numpy() if len(lost) else lost
        file.flags[rows[lost]] |= np.uint32(p.NO_CELL.bit)
        file.flags[rows[lost[alone]]] ^= np.uint32(p.NO_CELL.bit | p.OUTDONE.bit)
        sides.append(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().numpy())
    all_sides = np.concatenate(sides)
    quantiles = np.quantile(all_sides, (0.05, 0.5, 0.95)).tolist() if len(all_sides) else [float("nan")] * 3
    return Coverage(settings, len(chosen), tuple(per_level.tolist()), tuple(quantiles))  # type: ignore[arg-type]


def _batches(
    file: CocoFile, chosen: npt.NDArray[np.int64], settings: Settings
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor, list[int], tuple[int, int]]]:
    """Rows, their boxes in input pixels, how many each image has, and (height, width) that holds every image."""
    of_image = file.image_rows[chosen]
    first = np.flatnonzero(np.diff(of_image, prepend=-1))
    ends = np.append(first[1:], len(chosen))
    for at in range(0, len(first), BATCH):
        images = of_image[first[at : at + BATCH]]
        counts = (ends - first)[at : at + BATCH]
        rows = chosen[first[at] : ends[min(at + BATCH, len(first)) - 1]]
        sizes = file.sizes[images]
        resized = np.array(
            [ResizeShortestEdge.get_output_shape(h, w, settings.min_size, settings.max_size) for h, w in sizes.tolist()]
        )
        limits = np.tile(sizes[:, ::-1], 2).repeat(counts, axis=0)
        boxes = file.annotations.boxes[rows].clip(0, limits) * np.tile((resized / sizes)[:, ::-1], 2).repeat(
            counts, axis=0
        )
        height, width = resized.max(axis=0).tolist()
        yield rows, torch.from_numpy(boxes.astype(np.float32)), counts.tolist(), (height, width)
