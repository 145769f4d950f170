"""Evaluation with Detectron2's evaluators."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Box and mask AP on a dataset: LVIS's for LVIS, COCO's for every other.

    Results go to ``OUTPUT_DIR/inference``, with a folder per dataset where there are several.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset_name)
    tasks = ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if MetadataCatalog.get(dataset_name).get("evaluator_type") == "lvis":
        return LVISEvaluator(dataset_name, tasks, output_dir=folder, max_dets_per_image=limit)
    return COCOEvaluator(dataset_name, tasks, output_dir=folder, max_dets_per_image=limit if limit > 100 else 100)


def without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Metrics for JSON: Detectron2 gives NaN for a class or a size without objects, JSON has null."""
    return {name: None if math.isnan(value) else value for name, value in metrics.items()}
