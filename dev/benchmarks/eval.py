"""Pasting, encoding and COCO evaluation of a dataset's detections, against Detectron2's paste and COCOEvaluator."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.common import Goal, Row, alternate
from benchmarks.source import find_source

DATASET = "benchmark_eval"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=80, help="evaluated (default 80)")
    parser.add_argument("--detections", type=int, default=100, help="per image (default 100)")


def run(args: argparse.Namespace) -> list[Row]:
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    from benchmarks.detections import ObjectPool

    source = find_source(args.data)
    detections = list(ObjectPool(source).detect_all(args.images, args.detections))
    logger = logging.getLogger("detectron2")
    level = logger.level
    logger.setLevel(logging.ERROR)
    register_coco_instances(DATASET, {}, str(source.json_file), str(source.images))
    try:
        DatasetCatalog.get(DATASET)  # fills in the categories
        return _measure(detections, args)
    finally:
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
        logger.setLevel(level)


def _measure(detections: Sequence[Any], args: argparse.Namespace) -> list[Row]:
    from detectron2.evaluation import COCOEvaluator
    from detectron2.evaluation.coco_evaluation import COCOeval, COCOeval_opt
    from detectron2.modeling.postprocessing import detector_postprocess

    from meinst_d2.evaluation import MEInstCOCOEvaluator
    from meinst_d2.modeling.inference import postprocess

    results = {}

    def detectron2() -> None:
        evaluator = COCOEvaluator(DATASET, ("bbox", "segm"), distributed=False)
        results["baseline"] = _evaluate(evaluator, detections, detector_postprocess)

    def ours(mask_output: str) -> None:
        def finish(instances: Any, height: int, width: int) -> Any:
            return postprocess(instances, height, width, "clipped", mask_output)  # clipped, as Detectron2 pastes

        results[mask_output] = _evaluate(MEInstCOCOEvaluator(DATASET, distributed=False), detections, finish)

    compiled = "compiled" if COCOeval_opt is not COCOeval else "pycocotools"
    sides = {
        "templates, MEInstCOCOEvaluator": lambda: ours("template"),
        f"detectron2 paste, COCOEvaluator ({compiled})": detectron2,
        "bit masks, MEInstCOCOEvaluator": lambda: ours("bitmask"),
    }
    templates, baseline, masks = alternate(sides, args.rounds).values()
    what = f"{len(detections)} images x {args.detections} detections"
    rows = []
    for side, kind in ((templates, "template"), (masks, "bitmask")):
        notes = _compare(results[kind], results["baseline"])
        ratio = Row("", side, baseline).ratio
        goal = Goal(">= 3x, AP to 1e-9", ratio >= 3 and notes["largest difference of a metric"] <= 1e-9)
        rows.append(Row(f"{what}, {kind}", side, baseline, goal=goal if kind == "template" else None, notes=notes))
    return rows


def _evaluate(evaluator: Any, detections: Iterable[Any], finish: Any) -> tuple[dict[str, Any], list[Any]]:
    """Metrics, and the results of every image."""
    import contextlib
    import io

    from detectron2.structures import Boxes, Instances

    evaluator.reset()
    for found in detections:
        height, width = found.record["height"], found.record["width"]
        instances = Instances((height, width))
        instances.pred_boxes = Boxes(found.boxes.clone())  # Detectron2 clips in place
        instances.scores, instances.pred_classes = found.scores, found.classes
        instances.pred_masks = found.templates[:, None]
        evaluator.process([found.record], [{"instances": finish(instances, height, width)}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate(), evaluator._predictions


def _compare(ours: tuple[dict[str, Any], list[Any]], theirs: tuple[dict[str, Any], list[Any]]) -> dict[str, Any]:
    import math

    differences = [
        abs(ours[0][task][name] - value)
        for task, metrics in theirs[0].items()
        for name, value in metrics.items()
        if not math.isnan(value)
    ]
    pairs = [
        (a["segmentation"], b["segmentation"])
        for x, y in zip(ours[1], theirs[1], strict=True)
        for a, b in zip(x["instances"], y["instances"], strict=True)
    ]
    return {
        "mask AP": theirs[0]["segm"]["AP"],
        "largest difference of a metric": max(differences),
        "encodings that differ": f"{sum(a != b for a, b in pairs)} of {len(pairs)}",
    }
