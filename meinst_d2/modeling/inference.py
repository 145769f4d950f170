"""From dense predictions to instances: select, suppress, decode; then fit them to the output image.

Symbols: K classes, D coefficients, S mask side, R locations of an image over all levels, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from detectron2.utils.memory import retry_if_cuda_oom
from torch import Tensor
from torchvision.ops import batched_nms

from meinst_d2.encoding.encoder import MaskEncoder
from meinst_d2.fcos.boxes import ltrb_to_xyxy
from meinst_d2.fcos.select import select_candidates
from meinst_d2.masks import RLEs, encode_templates, paste_masks
from meinst_d2.modeling.head import HeadOutput

PasteBox = Literal["predicted", "clipped"]
MaskOutput = Literal["bitmask", "rle", "template"]
MASK_THRESHOLD = 0.5
LIMIT = 1e6
"""What box coordinates, in pixels, and coefficients are cut to: more means nothing, and infinity spoils its neighbours.
"""


@dataclass(frozen=True)
class InferenceRule:
    """How predictions become detections.

    Attributes:
        score_thresh: least class probability of a candidate.
        pre_nms_topk: most candidates per level.
        nms_thresh: overlap above which the lower-scored of two boxes of a class goes; 0 or less keeps all.
        max_detections: most detections per image, those of the highest scores; 0 or less keeps all.
        thresh_with_centerness: threshold the product of class probability and centerness instead.
    """

    score_thresh: float = 0.05
    pre_nms_topk: int = 1000
    nms_thresh: float = 0.6
    max_detections: int = 100
    thresh_with_centerness: bool = False


@torch.no_grad()
def detect(
    output: HeadOutput,
    locations_per_level: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    rule: InferenceRule,
    encoder: MaskEncoder | None,
) -> list[Instances]:
    """Detections of every image of a batch, in network coordinates.

    The highest score comes first; without suppression the detections stay in the order of levels, locations, classes.

    Args:
        output: predictions for N images.
        locations_per_level: (H * W, 2) per level, on the predictions' device.
        strides: of every level.
        image_sizes: (height, width) of each image before padding.
        rule: how predictions become detections.
        encoder: of the coefficients; None for a head without a mask branch.

    Returns:
        Per image: ``pred_boxes`` (not clipped), ``scores``, ``pred_classes``, ``locations`` (n, 2), and with masks
        ``pred_masks`` (n, 1, S, S), probabilities relative to the box.
    """
    detections = []
    for image, image_size in enumerate(image_sizes):
        boxes, scores, classes, locations, coeffs = [], [], [], [], []
        for level, (level_locations, stride) in enumerate(zip(locations_per_level, strides, strict=True)):
            found = select_candidates(
                output.cls_logits[level][image].flatten(1),  # (K, H * W)
                output.centerness[level][image].flatten(),
                score_thresh=rule.score_thresh,
                topk=rule.pre_nms_topk,
                thresh_with_centerness=rule.thresh_with_centerness,
            )
            at = found.location_idx
            ltrb = output.box_ltrb[level][image].flatten(1).T[at] * stride  # (C, 4)
            boxes.append(ltrb_to_xyxy(level_locations[at], ltrb))
            locations.append(level_locations[at])
            scores.append(found.scores)
            classes.append(found.class_idx)
            if output.mask_coeffs is not None:
                coeffs.append(output.mask_coeffs[level][image].flatten(1).T[at])  # (C, D)
        all_boxes, all_scores, all_classes = _limited(torch.cat(boxes)), torch.cat(scores), torch.cat(classes)
        keep = survivors(all_boxes, all_scores, all_classes, rule)
        result = Instances(image_size)
        result.pred_boxes = Boxes(all_boxes[keep])
        result.scores = all_scores[keep]
        result.pred_classes = all_classes[keep]
        result.locations = torch.cat(locations)[keep]
        if encoder is not None:  # decoded for the few that are left, not for every location
            result.pred_masks = encoder.decode(_limited(torch.cat(coeffs)[keep]), result.pred_classes)[:, None]
        detections.append(result)
    return detections


def _limited(x: Tensor) -> Tensor:
    """Within the limit; what is not a number, after half precision overflowed, becomes 0."""
    return x.nan_to_num(nan=0.0, posinf=LIMIT, neginf=-LIMIT).clamp_(-LIMIT, LIMIT)


def survivors(boxes: Tensor, scores: Tensor, classes: Tensor, rule: InferenceRule) -> Tensor:
    """Indices of the candidates that suppression and the cap leave."""
    cap = rule.max_detections if 0 < rule.max_detections < len(scores) else len(scores)
    if rule.nms_thresh > 0 and len(boxes) > 0:
        # torchvision moves the boxes of each class apart. They stay apart only where none is negative, and keep their
        # shapes next to large ones only in float64.
        boxes = boxes.double()
        return batched_nms(boxes - boxes.min(), scores.double(), classes, rule.nms_thresh)[:cap]
    return scores.topk(cap).indices.sort().values


def postprocess(
    results: Instances, height: int, width: int, paste_box: PasteBox = "predicted", mask_output: MaskOutput = "bitmask"
) -> Instances:
    """Bring detections to the size of the output image, and their masks with them.

    A mask is relative to the box that was predicted with it. Where that box leaves the image, "predicted" stretches the
    mask over the whole box and shows the part inside the image; "clipped" squeezes the mask into the part of the box
    that lies in the image, as the published implementation does.

    Args:
        results: from :func:`detect`; not modified.
        height, width: of the output image.
        paste_box: "predicted" or "clipped".
        mask_output: what the masks become. "bitmask": ``pred_masks`` (n, height, width) bool. "rle": their n COCO
            encodings, ``pred_masks_rle``, made without them. "template": ``pred_mask_templates`` (n, S, S)
            probabilities, and ``pred_mask_boxes``, where they go: in the output image but not clipped by it.

    Returns:
        The detections whose clipped box is not empty, with clipped ``pred_boxes``.
    """
    input_height, input_width = results.image_size
    output = Instances((height, width), **results.get_fields())
    predicted = results.pred_boxes.clone()
    predicted.scale(width / input_width, height / input_height)
    clipped = predicted.clone()
    clipped.clip(output.image_size)
    output.pred_boxes = clipped
    keep = clipped.nonempty()
    output = output[keep]
    if output.has("pred_masks"):
        templates = output.pred_masks[:, 0]
        output.remove("pred_masks")
        boxes = output.pred_boxes if paste_box == "clipped" else predicted[keep]
        if output.has("pred_mask_boxes"):
            boxes = output.pred_mask_boxes
            boxes.scale(width / input_width, height / input_height)
            output.remove("pred_mask_boxes")
        if mask_output == "template":
            output.pred_mask_templates, output.pred_mask_boxes = templates, boxes
        elif mask_output == "rle":
            output.pred_masks_rle = RLEs(encode_templates(templates.cpu(), boxes.tensor.cpu(), height, width))
        else:
            output.pred_masks = retry_if_cuda_oom(_paste)(templates, boxes.tensor, output.image_size)
    return output


def _paste(templates: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    if templates.device.type == "cpu":
        return paste_masks(templates, boxes, *image_size)
    return paste_masks_in_image(templates, boxes, image_size, MASK_THRESHOLD).to(torch.bool)
