"""Test-time augmentation: detections on several sizes of an image and on its mirror image, merged.

Detectron2's :class:`GeneralizedRCNNWithTTA` looks at the merged boxes once more in every view. A one-stage detector has
no such second stage, so here the masks of all views are merged: each is a template in a box, and the mean of templates
is a template.

Symbols: n detections on all views, m of them kept, S mask side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data.detection_utils import read_image
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Boxes, Instances
from fvcore.transforms import HFlipTransform
from torch import Tensor, nn
from torchvision.ops import box_iou

from meinst_d2.modeling.inference import InferenceRule, MaskOutput, PasteBox, postprocess, survivors
from meinst_d2.modeling.refinement import resample

SAME_OBJECT = 0.7
"""Least IoU of detections that are averaged; of those that overlap by less, some are of neighbours."""


class DetectorWithTTA(nn.Module):
    """A detector that looks at several views of an image; inputs and outputs are those of the detector."""

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        views: Callable[[dict[str, Any]], list[dict[str, Any]]],
        rule: InferenceRule,
        image_format: str,
        mask_paste_box: PasteBox = "predicted",
        mask_output: MaskOutput = "bitmask",
    ) -> None:
        """
        Args:
            model: a detector of this project, in evaluation mode.
            views: of an input, as Detectron2's ``DatasetMapperTTA`` makes them.
            rule: which detections of all views are kept.
            image_format: as in ``INPUT.FORMAT``.
            mask_paste_box, mask_output: see :func:`~meinst_d2.modeling.inference.postprocess`.
        """
        super().__init__()
        self.model = copy.copy(model)  # the same parameters
        self.model.mask_output = "template"
        self.views, self.rule, self.image_format = views, rule, image_format
        self.mask_paste_box: PasteBox = mask_paste_box
        self.mask_output: MaskOutput = mask_output

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        meinst, anchors = cfg.MODEL.MEINST, cfg.MODEL.META_ARCHITECTURE == "MEInstRetinaNet"
        nms_thresh = cfg.MODEL.RETINANET.NMS_THRESH_TEST if anchors else meinst.NMS_THRESH_TEST
        return {
            "model": model,
            "views": DatasetMapperTTA(cfg),
            "rule": InferenceRule(nms_thresh=nms_thresh, max_detections=cfg.TEST.DETECTIONS_PER_IMAGE),
            "image_format": cfg.INPUT.FORMAT,
            "mask_paste_box": meinst.MASK_PASTE_BOX,
            "mask_output": meinst.MASK_OUTPUT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Args:
            batched_inputs: one dict per image: ``file_name``, or ``image`` (3, H, W) with values from 0 to 255;
                optionally ``height`` and ``width`` of the output.
        """
        return [{"instances": self._merged(given)} for given in batched_inputs]

    def _merged(self, given: Mapping[str, Any]) -> Instances:
        inputs = dict(given)
        if "file_name" in inputs:  # in all its pixels: "image" has been resized
            pixels = read_image(inputs["file_name"], self.image_format)
            inputs["image"] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        inputs["image"] = inputs["image"].byte()  # which Detectron2 resizes as in training
        height, width = inputs["image"].shape[1:]
        found = [self._detect(view) for view in self.views(inputs | {"height": height, "width": width})]
        together = Instances.cat([Instances((height, width), **fields) for fields in found])
        merged = merge(together, self.rule)
        size = given.get("height", height), given.get("width", width)
        return postprocess(merged, *size, self.mask_paste_box, self.mask_output)

    def _detect(self, view: dict[str, Any]) -> dict[str, Any]:
        """Detections on a view, in the image's pixels."""
        height, width = view["image"].shape[1:]
        found = self.model([{"image": view["image"], "height": height, "width": width}])[0]["instances"]
        transforms = view["transforms"]
        fields = {"scores": found.scores, "pred_classes": found.pred_classes}

        def in_image(boxes: Boxes) -> Boxes:
            moved = transforms.inverse().apply_box(boxes.tensor.double().cpu().numpy())
            return Boxes(torch.as_tensor(moved.astype(np.float32)).to(boxes.device))

        fields["pred_boxes"] = in_image(found.pred_boxes)
        if found.has("pred_mask_templates"):
            mirrored = any(isinstance(transform, HFlipTransform) for transform in transforms.transforms)
            templates = found.pred_mask_templates
            fields["pred_masks"] = (templates.flip(2) if mirrored else templates)[:, None]
            fields["pred_mask_boxes"] = in_image(found.pred_mask_boxes)
        return fields


def merge(found: Instances, rule: InferenceRule) -> Instances:
    """The detections that suppression keeps, each the mean of itself and of others of the same object.

    Args:
        found: n detections on one image: ``pred_boxes``, ``scores``, ``pred_classes`` and, with masks, ``pred_masks``
            (n, 1, S, S) and ``pred_mask_boxes``, where they are.
        rule: ``nms_thresh`` and ``max_detections`` count.

    Returns:
        m of them, the highest score first. Boxes and templates are means, weighted by score, over the detections of
        the class that overlap the kept one by more than ``SAME_OBJECT``; scores are those of the kept.
    """
    boxes, scores, classes = found.pred_boxes.tensor, found.scores, found.pred_classes
    kept = survivors(boxes, scores, classes, rule)
    result = found[kept]
    if not len(kept) or rule.nms_thresh <= 0:
        return result
    same = (box_iou(boxes[kept], boxes) > max(rule.nms_thresh, SAME_OBJECT)) & (classes[kept][:, None] == classes)
    same[torch.arange(len(kept), device=kept.device), kept] = True
    of, member = same.nonzero().unbind(1)  # pairs of a row of the result and one of found

    def mean(values: Tensor) -> Tensor:
        weights = scores[member].clamp(min=1e-12)
        shape = (-1, *[1] * (values.dim() - 1))
        total = values.new_zeros(len(kept), *values.shape[1:]).index_add_(0, of, values * weights.view(shape))
        return total / weights.new_zeros(len(kept)).index_add_(0, of, weights).view(shape)

    result.pred_boxes = Boxes(mean(boxes[member]))
    if found.has("pred_masks"):
        places, templates = found.pred_mask_boxes.tensor, found.pred_masks[:, 0]
        moved = resample(templates[member], places[member], places[kept][of], templates.shape[-1])
        result.pred_masks = mean(moved)[:, None]
    return result
