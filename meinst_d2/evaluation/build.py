"""Evaluation with Detectron2's evaluators."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator

from meinst_d2.evaluation.coco import MEInstCOCOEvaluator

COCO_MAX_DETS = 100
ALL_DETS = 1_000_000


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Box and mask AP on a dataset: LVIS's for LVIS, COCO's for every other.

    COCO's AP counts the 100 best detections of an image, or as many as the model gives where those are more. Results
    go to ``OUTPUT_DIR/inference``, with a folder per dataset where there are several.

    Raises:
        ValueError: the masks are in a form that LVIS's evaluator does not know.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset_name)
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if MetadataCatalog.get(dataset_name).get("evaluator_type") == "lvis":
        if cfg.MODEL.MASK_ON and cfg.MODEL.MEINST.MASK_OUTPUT != "bitmask":
            raise ValueError(
                f"LVIS is evaluated on bit masks, MODEL.MEINST.MASK_OUTPUT is {cfg.MODEL.MEINST.MASK_OUTPUT!r}: "
                "set it to bitmask"
            )
        return LVISEvaluator(dataset_name, tasks, output_dir=folder, max_dets_per_image=limit)
    counted = max(limit, COCO_MAX_DETS) if limit > 0 else ALL_DETS
    return MEInstCOCOEvaluator(dataset_name, tasks, output_dir=folder, max_dets_per_image=counted)


def without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON: Detectron2 gives NaN for a class or a size without objects, JSON has null."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}
