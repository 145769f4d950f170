"""Which objects get no location of the feature levels, assigned as in training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge

from meinst_d2.check import FINE, HURTS, Finding, Report, add_rule, in_chunks
from meinst_d2.check.annotation_rules import ANNOTATION_RULES, RELATIVE
from meinst_d2.check.coco_file import CocoFile
from meinst_d2.check.image_rules import FEW
from meinst_d2.fcos.assign import AssignmentRule, assign_batch

USUAL_LOSS = 0.02
"""Share of objects without a location up to which nothing is wrong: COCO has 1 % at 800 pixels."""
USUAL_LOSS_OF_CLASS = 0.1


class Settings(NamedTuple):
    """What matters of a config."""

    rule: AssignmentRule
    min_size: int  # of test images
    max_size: int
    filter_empty: bool  # whether training leaves out images without objects


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
    """How the objects spread over the feature levels."""

    settings: Settings  # that they were assigned with
    objects: int  # those assigned
    per_level: tuple[int, ...]  # (L,) objects with a positive location on each level; an object may have some on two
    sides: tuple[float, float, float]  # quantiles 5, 50 and 95 % of the root of the box area, in input pixels


def measure_coverage(file: CocoFile, settings: Settings, workers: int = 1) -> Coverage:
    """Assign all objects of a checked file as training does at the test size, and flag those that get no location."""
    rows = np.flatnonzero(file.learned & ~file.having(RELATIVE))
    rows = rows[(file.sizes[file.image_rows[rows]] > 0).all(axis=1)]
    rows = rows[file.image_rows[rows].argsort(kind="stable")]
    images, counts = np.unique(file.image_rows[rows], return_counts=True)
    sizes, limits = file.sizes[images], (settings.min_size, settings.max_size)
    resized = np.array([ResizeShortestEdge.get_output_shape(h, w, *limits) for h, w in sizes.tolist()]).reshape(-1, 2)
    wide, scales = (np.tile(of_images[:, ::-1], 2).repeat(counts, axis=0) for of_images in (sizes, resized / sizes))
    boxes = (file.annotations.boxes[rows].clip(0, wide) * scales).astype(np.float32)
    given = (boxes, np.append(0, counts.cumsum()), resized, settings.rule)
    how = {"workers": workers, "title": "assigning", "unit": " images", "chunk": 64}
    per_level = np.zeros(len(settings.rule.strides), np.int64)
    for _, (too_small, outdone, of_levels) in in_chunks(_assign, len(images), *given, **how):
        file.flags[rows[too_small]] |= NO_CELL.bit
        file.flags[rows[outdone]] |= OUTDONE.bit
        per_level += of_levels
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    quantiles = np.quantile(sides, (0.05, 0.5, 0.95)).tolist() if len(sides) else [float("nan")] * 3
    return Coverage(settings, len(rows), tuple(per_level.tolist()), tuple(quantiles))  # type: ignore[arg-type]


def _assign(
    images: range,
    boxes: npt.NDArray[np.float32],  # (M, 4) of all objects, image by image
    ends: npt.NDArray[np.int64],  # (N + 1,) of each image's boxes, after a zero
    resized: npt.NDArray[np.int64],  # (N, 2) input height and width
    rule: AssignmentRule,
) -> tuple[npt.NDArray[np.int64], ...]:
    """Boxes of some images that hold no cell, those all of whose cells are others', and (L,) objects per level.

    All are assigned as if they were as large as the largest: cells outside are in no box.
    """
    offsets = ends[images.start : images.stop + 1]
    mine = torch.from_numpy(boxes[offsets[0] : offsets[-1]])
    height, width = resized[images.start : images.stop].max(axis=0).tolist()
    levels = [(-(-height // stride), -(-width // stride)) for stride in rule.strides]
    positives = assign_batch(mine.split(np.diff(offsets).tolist()), levels, rule)
    gt, location = positives.gt_idx.numpy(), positives.location_idx.numpy()
    level = np.cumsum([h * w for h, w in levels]).searchsorted(location, side="right")
    per_level = np.array([len(np.unique(gt[level == k])) for k in range(len(levels))], np.int64)
    lost = np.setdiff1d(np.arange(len(mine)), gt)
    alone = assign_batch(mine[lost].split(1), levels, rule).gt_idx.unique().numpy() if len(lost) else lost
    return offsets[0] + np.delete(lost, alone), offsets[0] + lost[alone], per_level


def loss(report: Report, finding: Finding) -> dict[str, Any]:
    """What share of the objects it is; a small one is usual."""
    file = report.file
    lost = file.having(finding.rule) & file.learned
    share = lost.sum() / max(1, report.coverage.objects)
    per_class = np.bincount(file.annotations.categories[lost], minlength=len(file.classes)).tolist()
    much = [
        f"{100 * part / count:.0f} % of {name}"
        for part, (name, count) in zip(per_class, file.class_counts, strict=True)
        if count >= FEW and part > USUAL_LOSS_OF_CLASS * count
    ]
    note = f"{100 * share:.1f} % of the objects" + (f"; {', '.join(much)}" if much else "")
    return {"severity": HURTS if share > USUAL_LOSS or much else FINE, "note": note}


rule = partial(add_rule, ANNOTATION_RULES)
# fmt: off
NO_CELL = rule("too-small", HURTS, "objects too small or too thin to hold the center of a cell of their feature level",
    "teaches no location to find them: they are background to the detector",
    "train on larger images (INPUT.MIN_SIZE_TRAIN) or on tiles", measure_coverage, loss)
OUTDONE = rule("outdone", HURTS, "objects all of whose cells belong to smaller or earlier objects",
    "teaches no location to find them",
    "larger images (INPUT.MIN_SIZE_TRAIN) have more cells; look for objects that are annotated twice",
    measure_coverage, loss)
# fmt: on
