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
from meinst_d2.data.parallel import run_shards
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


def measure_coverage(file: CocoFile, settings: Settings, workers: int = 1) -> Coverage:
    """Assign all objects as training does at the test size, and flag those without a positive location.

    Args:
        file: scanned and checked; its flags change.
        settings: of the config.
        workers: processes.
    """
    chosen = np.flatnonzero(file.learned)
    chosen = chosen[(file.sizes[file.image_rows[chosen]] > 0).all(axis=1)]
    chosen = chosen[file.image_rows[chosen].argsort(kind="stable")]
    images = np.unique(file.image_rows[chosen])
    parts = run_shards(_assign_shard, images, workers, "assigning", file, chosen, settings, chunk=BATCH, unit=" images")
    per_level = np.zeros(len(settings.rule.strides), np.int64)
    sides = [np.zeros(0, np.float32)]
    for assigned in (assigned for part in parts for assigned in part):
        file.flags[assigned.too_small] |= np.uint32(p.NO_CELL.bit)
        file.flags[assigned.outdone] |= np.uint32(p.OUTDONE.bit)
        per_level += assigned.per_level
        sides.append(assigned.sides)
    all_sides = np.concatenate(sides)
    quantiles = np.quantile(all_sides, (0.05, 0.5, 0.95)).tolist() if len(all_sides) else [float("nan")] * 3
    return Coverage(settings, len(chosen), tuple(per_level.tolist()), tuple(quantiles))  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Assigned:
    """Of some images: rows without a location, (L,) objects per level, (M,) sides of all objects."""

    too_small: npt.NDArray[np.int64]
    outdone: npt.NDArray[np.int64]
    per_level: npt.NDArray[np.int64]
    sides: npt.NDArray[np.float32]


def _assign_shard(
    chunks: Iterator[npt.NDArray[np.int64]], file: CocoFile, chosen: npt.NDArray[np.int64], settings: Settings
) -> list[_Assigned]:
    of_image = file.image_rows[chosen]
    return [
        _assign(file, images, chosen[slice(*of_image.searchsorted((images[0], images[-1] + 1)))], settings)
        for images in chunks
    ]


def _assign(
    file: CocoFile, images: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], settings: Settings
) -> _Assigned:
    """Assign the objects of some images, all as if they were as large as the largest: cells outside are in no box."""
    rule, sizes = settings.rule, file.sizes[images]
    counts = np.unique(file.image_rows[rows], return_counts=True)[1]
    resized = np.array(
        [ResizeShortestEdge.get_output_shape(h, w, settings.min_size, settings.max_size) for h, w in sizes.tolist()]
    )
    limits = np.tile(sizes[:, ::-1], 2).repeat(counts, axis=0)
    scales = np.tile((resized / sizes)[:, ::-1], 2).repeat(counts, axis=0)
    boxes = torch.from_numpy((file.annotations.boxes[rows].clip(0, limits) * scales).astype(np.float32))
    height, width = resized.max(axis=0).tolist()
    levels = [(-(-height // stride), -(-width // stride)) for stride in rule.strides]
    positives = assign_batch(boxes.split(counts.tolist()), levels, rule)
    gt, location = positives.gt_idx.numpy(), positives.location_idx.numpy()
    level = np.cumsum([h * w for h, w in levels]).searchsorted(location, side="right")
    per_level = np.array([len(np.unique(gt[level == k])) for k in range(len(levels))], np.int64)
    lost = np.setdiff1d(np.arange(len(rows)), gt)
    alone = assign_batch(boxes[lost].split(1), levels, rule).gt_idx.unique().numpy() if len(lost) else lost
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt().numpy()
    return _Assigned(rows[np.delete(lost, alone)], rows[lost[alone]], per_level, sides)
