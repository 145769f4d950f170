"""Detectron2's visualizers, with the holes of masks left open.

Detectron2 fills the outline of a hole like that of an object, so that a ring looks like a disc.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.colors
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.colormap import random_color
from detectron2.utils.video_visualizer import VideoVisualizer, _DetectedInstance
from detectron2.utils.visualizer import GenericMask, VisImage, Visualizer, _create_text_labels


class MaskVisualizer(Visualizer):
    """Detectron2's Visualizer; masks are filled pixel by pixel, and also taken from ``pred_masks_rle``."""

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """As Detectron2's, with boxes, labels and masks in either form.

        Args:
            predictions: on the CPU, of the image that is drawn on.
            jittering: unused, as in Detectron2's default mode.
        """
        labels = _create_text_labels(
            predictions.pred_classes.tolist(), predictions.scores, self.metadata.get("thing_classes", None)
        )
        return self.overlay_instances(boxes=predictions.pred_boxes, masks=masks_of(predictions), labels=labels)

    def overlay_instances(
        self,
        *,
        masks: Any = None,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
        **kwargs: Any,
    ) -> VisImage:
        """As Detectron2's: the largest mask is painted first, then outlines, boxes and labels are drawn."""
        if masks is not None and len(masks):
            masks = self._convert_masks(masks)
            if assigned_colors is None:
                assigned_colors = [random_color(rgb=True, maximum=1) for _ in masks]
            self._fill(masks, assigned_colors, alpha)
            alpha = 0.0  # Detectron2 draws the outlines alone
        return super().overlay_instances(
            masks=masks, boxes=boxes, labels=labels, assigned_colors=assigned_colors, alpha=alpha, **kwargs
        )

    def _fill(self, masks: Sequence[GenericMask], colors: Sequence[Any], alpha: float) -> None:
        height, width = self.output.height, self.output.width
        paint = np.zeros((height, width, 3), np.float32)  # premultiplied
        transparency = np.ones((height, width, 1), np.float32)
        for i in np.argsort([-int(mask.area()) for mask in masks], kind="stable"):
            inside = masks[i].mask.astype(bool)
            paint[inside] = paint[inside] * (1 - alpha) + alpha * np.array(matplotlib.colors.to_rgb(colors[i]))
            transparency[inside] *= 1 - alpha
        opacity = 1 - transparency
        rgba = np.concatenate((paint / np.maximum(opacity, 1e-6), opacity), axis=2)
        self.output.ax.imshow(rgba.clip(0, 1), extent=(0, width, height, 0), interpolation="nearest")


class MaskVideoVisualizer(VideoVisualizer):
    """Detectron2's VideoVisualizer, which keeps an object's colour from frame to frame, drawing as above."""

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """
        Args:
            frame: (H, W, 3) uint8 RGB.
            predictions: of the frame, on the CPU.
        """
        visualizer = MaskVisualizer(frame, self.metadata)
        if not len(predictions):
            return visualizer.output
        boxes, classes = predictions.pred_boxes.tensor.numpy(), predictions.pred_classes.numpy()
        found = [
            _DetectedInstance(label, box, mask_rle=None, color=None, ttl=8)
            for label, box in zip(classes, boxes, strict=True)
        ]
        labels = _create_text_labels(classes, predictions.scores, self.metadata.get("thing_classes", None))
        masks = masks_of(predictions)
        return visualizer.overlay_instances(
            boxes=boxes if masks is None else None,  # beside masks they distract
            masks=masks,
            labels=labels,
            assigned_colors=self._assign_colors(found),
        )


def masks_of(predictions: Instances) -> Any:
    """Bit masks or COCO encodings, whichever there are, or None."""
    if predictions.has("pred_masks_rle"):
        return list(predictions.pred_masks_rle)
    return predictions.pred_masks if predictions.has("pred_masks") else None
