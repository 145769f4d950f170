"""Pictures for TensorBoard while training: what is learned from, what the encoding makes of it, what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.structures import Instances
from torch import Tensor, nn

from meinst_d2.masks import paste_masks
from meinst_d2.modeling.build import mask_templates
from meinst_d2.visualization.drawing import MaskVisualizer

MOST_DETECTIONS = 20


class Visualization(HookBase):
    """Every ``period`` iterations, the first image of the batch: ground truth, its reconstruction, prediction."""

    def __init__(self, period: int, image_format: str) -> None:
        """
        Args:
            period: iterations.
            image_format: of the images, as in ``INPUT.FORMAT``.
        """
        self.period, self.image_format = period, image_format

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period:
            return
        sample, model = self.trainer.last_batch[0], self.trainer.model
        picture = draw_sample(getattr(model, "module", model), sample, self.image_format)
        self.trainer.storage.put_image("ground truth, reconstruction, prediction", picture)


@torch.no_grad()
def draw_sample(model: nn.Module, sample: Mapping[str, Any], image_format: str) -> np.ndarray:
    """One training sample three times, side by side.

    Args:
        model: a detector with masks or without.
        sample: of the training loader: ``image``, and ``instances`` in its pixels.
        image_format: as in ``INPUT.FORMAT``.

    Returns:
        (3, H, W') uint8 RGB.
    """
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
    truth: Instances = sample["instances"]
    panels = [draw(image, truth.gt_boxes.tensor, masks) for masks in truth_and_reconstruction(model, truth)]
    trains = model.training
    model.eval()
    try:
        found = model([{"image": sample["image"]}])[0]["instances"].to("cpu")
    finally:
        model.train(trains)
    found = found[found.scores.argsort(descending=True)[:MOST_DETECTIONS]]
    panels.append(draw(image, found.pred_boxes.tensor, masks_to_draw(found), found.scores))
    return np.concatenate(panels, axis=1).transpose(2, 0, 1)


def truth_and_reconstruction(model: nn.Module, truth: Instances) -> list[np.ndarray | None]:
    """(M, H, W) bool each: the masks as training sees them, and as the encoder redraws them; None without masks."""
    encoder = getattr(getattr(model, "proposal_generator", model), "mask_encoder", None)
    if encoder is None or not len(truth):
        return [None, None]
    templates = mask_templates([truth], encoder.mask_size)
    device = next(model.parameters()).device
    trains, classes = encoder.training, truth.gt_classes.to(device)
    encoder.eval()  # the mean of the random clamp
    redrawn = encoder.decode(encoder.encode(templates.to(device), classes), classes).cpu()
    encoder.train(trains)
    boxes = truth.gt_boxes.tensor
    return [paste_masks(x.float(), boxes, *truth.image_size).numpy() for x in (templates, redrawn)]


def masks_to_draw(found: Instances) -> Any:
    """The masks of detections in any form, in one that the visualizer takes; None without masks."""
    if found.has("pred_masks"):
        return found.pred_masks.numpy()
    if found.has("pred_masks_rle"):
        return list(found.pred_masks_rle)
    if found.has("pred_mask_templates"):
        return paste_masks(found.pred_mask_templates, found.pred_mask_boxes.tensor, *found.image_size).numpy()
    return None


def draw(image: np.ndarray, boxes: Tensor, masks: Any, scores: Tensor | None = None) -> np.ndarray:
    """(H, W, 3) uint8: the image with boxes, masks and scores."""
    labels = None if scores is None else [f"{score:.0%}" for score in scores.tolist()]
    drawn: np.ndarray = MaskVisualizer(image).overlay_instances(boxes=boxes, masks=masks, labels=labels).get_image()
    return drawn
