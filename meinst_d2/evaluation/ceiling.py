"""The mask AP that an encoding allows: the ground truth's own encoded masks in the ground truth's boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from meinst_d2.data.datasets import dataset_dicts
from meinst_d2.data.instances import from_dataset_dicts, make_templates
from meinst_d2.encoding import MaskEncoder
from meinst_d2.evaluation.coco import MEInstCOCOEvaluator
from meinst_d2.modeling.inference import postprocess


@torch.no_grad()
def encoding_ceiling(encoder: MaskEncoder, dataset_name: str) -> Mapping[str, Any]:
    """Evaluate a detector that finds every object and its box exactly, and the best coefficients.

    Args:
        encoder: fitted; used in evaluation mode on the CPU.
        dataset_name: registered, with annotations.

    Returns:
        Detectron2's results: ``{"bbox": {"AP": ...}, "segm": {"AP": ...}}``.
    """
    evaluator = MEInstCOCOEvaluator(dataset_name, distributed=False)
    evaluator.reset()
    encoder = encoder.cpu().eval()
    for record in dataset_dicts(dataset_name):
        detections = _detections(encoder, record)
        output = postprocess(detections, record["height"], record["width"], mask_output="template")
        evaluator.process([record], [{"instances": output}])
    return evaluator.evaluate()


def _detections(encoder: MaskEncoder, record: Mapping[str, Any]) -> Instances:
    annotations = from_dataset_dicts([record])
    templates = make_templates(annotations, encoder.mask_size)
    kept: Sequence[int] = templates.kept.tolist()
    detections = Instances((record["height"], record["width"]))
    boxes = np.array([annotations[i].box for i in kept], np.float32).reshape(-1, 4)
    detections.pred_boxes = Boxes(torch.from_numpy(boxes))
    detections.scores = torch.ones(len(kept))
    detections.pred_classes = torch.tensor([annotations[i].category for i in kept], dtype=torch.int64)
    classes = detections.pred_classes
    coeffs = encoder.encode(torch.from_numpy(templates.masks), classes)
    detections.pred_masks = encoder.decode(coeffs, classes)[:, None]
    return detections
