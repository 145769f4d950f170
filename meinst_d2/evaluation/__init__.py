"""Evaluation with Detectron2's evaluators, and measurements of the encodings, which need no Detectron2."""

from typing import TYPE_CHECKING, Any

from meinst_d2.prerequisites import require_detectron2

__all__ = ["MEInstCOCOEvaluator", "build_evaluator"]

if TYPE_CHECKING:
    from meinst_d2.evaluation.coco import MEInstCOCOEvaluator
    from meinst_d2.evaluation.evaluator import build_evaluator


def __getattr__(name: str) -> Any:
    if name in __all__:
        require_detectron2()
        from meinst_d2.evaluation import evaluator

        return getattr(evaluator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
