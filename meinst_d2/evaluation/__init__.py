"""COCO's AP of a model's predictions, and what is compared by it: test scales, encodings, boxes of other detectors."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.evaluation.coco import MEInstCOCOEvaluator, build_evaluator  # noqa: E402

__all__ = ["MEInstCOCOEvaluator", "build_evaluator"]
