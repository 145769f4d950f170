"""Evaluation with Detectron2's evaluators."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.evaluation.build import build_evaluator  # noqa: E402
from meinst_d2.evaluation.coco import MEInstCOCOEvaluator  # noqa: E402

__all__ = ["MEInstCOCOEvaluator", "build_evaluator"]
