"""One model at several sizes of its input: accuracy, and the time that it takes (paper, table 7)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from torch import nn
from tqdm import tqdm

from meinst_d2.evaluation.build import build_evaluator

WARM_UP_IMAGES = 5


@dataclass(frozen=True)
class ScaleResult:
    """What came of one test scale.

    Attributes:
        scale: of the shorter side, in pixels.
        metrics: Detectron2's results, ``{"bbox": {"AP": ...}, "segm": {"AP": ...}}``, in percent.
        num_images: evaluated.
        model_seconds: from an image in memory to finished detections, over all images.
        loading_seconds: that the loop waited for the loader, over all images.
    """

    scale: int
    metrics: Mapping[str, Mapping[str, float]]
    num_images: int
    model_seconds: float
    loading_seconds: float

    @property
    def images_per_second(self) -> float:
        """Of the model alone, with one image at a time."""
        return self.num_images / self.model_seconds


def config_at_scale(cfg: CfgNode, scale: int, output_dir: str, max_size: int | None = None) -> CfgNode:
    """The config with another test scale.

    Args:
        cfg: not modified.
        scale: of the shorter side, in pixels.
        output_dir: where results go.
        max_size: cap of the longer side; by default the config's ``INPUT.MAX_SIZE_TEST``, whatever the scale.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST = scale
    cfg.OUTPUT_DIR = output_dir
    if max_size is not None:
        cfg.INPUT.MAX_SIZE_TEST = max_size
    cfg.freeze()
    return cfg


def evaluate_at_scale(
    cfg: CfgNode, model: nn.Module, dataset_name: str, *, limit: int | None = None, warm_up: int = WARM_UP_IMAGES
) -> ScaleResult:
    """Evaluate a model at the test scale of ``cfg`` on the images of a dataset, one at a time.

    Args:
        cfg: of the test loader and the evaluator.
        model: in evaluation mode; the same for every scale.
        dataset_name: registered, with annotations.
        limit: evaluate the first images only; not for LVIS, whose evaluator knows no subsets.
        warm_up: images that the model sees before the clock starts: the first calls at a new size are slow.
    """
    loader = build_detection_test_loader(cfg, dataset_name)
    total = len(loader) if limit is None else min(limit, len(loader))
    for inputs in itertools.islice(loader, min(warm_up, total)):
        _timed(model, inputs)
    evaluator = build_evaluator(cfg, dataset_name)
    evaluator.reset()
    image_ids, model_seconds, loading_seconds = [], 0.0, 0.0
    waiting_since = time.perf_counter()
    for inputs in tqdm(itertools.islice(loader, total), desc=f"scale {cfg.INPUT.MIN_SIZE_TEST}", total=total):
        loading_seconds += time.perf_counter() - waiting_since
        outputs, seconds = _timed(model, inputs)
        model_seconds += seconds
        evaluator.process(inputs, outputs)
        image_ids += [record["image_id"] for record in inputs]
        waiting_since = time.perf_counter()
    metrics = evaluator.evaluate(image_ids) if total < len(loader) else evaluator.evaluate()
    return ScaleResult(cfg.INPUT.MIN_SIZE_TEST, metrics, total, model_seconds, loading_seconds)


@torch.no_grad()
def _timed(model: nn.Module, inputs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
    """The outputs, and the seconds until the device has finished them."""
    start = time.perf_counter()
    outputs = model(inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return outputs, time.perf_counter() - start
