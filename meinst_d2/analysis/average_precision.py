"""COCO's AP of results in memory: in all, by size and by class."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval import COCO, COCOeval_faster

from meinst_d2.analysis.inputs import MAX_DETECTIONS

SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class AveragePrecision:
    """In percent; NaN where the ground truth has no such objects.

    Attributes:
        ap, ap50, ap75: of all objects.
        by_size: of small, medium and large ones.
        by_class: of each class.
    """

    ap: float
    ap50: float
    ap75: float
    by_size: tuple[float, ...]
    by_class: tuple[float, ...]


def average_precision(coco: dict[str, Any], results: Iterable[Mapping[str, Any]], task: str) -> AveragePrecision:
    """Evaluate results as COCO does.

    Args:
        coco: an annotation file, parsed; not changed.
        results: in COCO's format; not changed.
        task: "bbox" or "segm".
    """
    # For masks the box goes, so that areas are those of the masks.
    left_out = "bbox" if task == "segm" else "segmentation"
    truth = COCO(copy.deepcopy(coco))
    found = truth.loadRes([{k: v for k, v in result.items() if k != left_out} for result in results])
    evaluation = COCOeval_faster(truth, found, task)
    evaluation.params.maxDets = [1, 10, MAX_DETECTIONS]
    evaluation.params.imgIds = sorted(truth.getImgIds())
    evaluation.params.catIds = sorted(truth.getCatIds())
    evaluation.evaluate()
    evaluation.accumulate()
    precision = np.asarray(evaluation.eval["precision"])[..., -1]  # (thresholds, recalls, classes, areas)
    thresholds = np.asarray(evaluation.params.iouThrs)

    def at(threshold: float) -> float:
        return _mean(precision[np.isclose(thresholds, threshold), :, :, 0])

    return AveragePrecision(
        _mean(precision[:, :, :, 0]),
        at(0.5),
        at(0.75),
        tuple(_mean(precision[:, :, :, 1 + size]) for size in range(len(SIZES))),
        tuple(_mean(precision[:, :, k, 0]) for k in range(precision.shape[2])),
    )


def _mean(precision: npt.NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else math.nan
