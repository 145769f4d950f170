"""From an image to what a trained model finds in it."""

from __future__ import annotations

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.structures import Instances

from meinst_d2.model_zoo import TrainedModel


class UnusableImage(ValueError):
    """An image that the network cannot be shown."""


class Predictor:
    """Detectron2's DefaultPredictor for a model of any origin, with masks as encodings and a least score."""

    def __init__(self, trained: TrainedModel, confidence_threshold: float = 0.5) -> None:
        """
        Args:
            trained: its model is told to give encodings (``pred_masks_rle``) instead of bit masks.
            confidence_threshold: least score of a detection.
        """
        self.trained, self.confidence_threshold = trained, confidence_threshold
        if hasattr(trained.model, "mask_output"):
            trained.model.mask_output = "rle"  # a bit mask has the size of the image

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Instances:
        """
        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            On the CPU, at the image's size, the highest score first: ``pred_boxes``, ``scores``, ``pred_classes`` and
            with masks ``pred_masks_rle``.

        Raises:
            UnusableImage: the image is so thin that nothing is left of it at the network's size.
        """
        height, width = image.shape[:2]
        if self.trained.image_format == "BGR":
            image = image[:, :, ::-1]
        resized = T.AugInput(image)
        try:
            self.trained.resize(resized)
        except ValueError as error:  # Pillow's, for a side of 0
            raise UnusableImage(
                f"{width} x {height} pixels cannot be brought to the network's size: {error}"
            ) from error
        pixels = torch.as_tensor(resized.image.astype("float32").transpose(2, 0, 1).copy())
        found = self.trained.model([{"image": pixels, "height": height, "width": width}])[0]["instances"].to("cpu")
        found = found[found.scores >= self.confidence_threshold]
        return found[found.scores.argsort(descending=True, stable=True)]
