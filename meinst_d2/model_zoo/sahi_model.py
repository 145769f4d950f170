"""A model of this project for the library sahi, whose tools cut images into slices."""

from __future__ import annotations

import numpy as np
from sahi.models.detectron2 import Detectron2DetectionModel

from meinst_d2.model_zoo.trained import TrainedModel, load


class MEInstDetectionModel(Detectron2DetectionModel):
    """sahi's ``DetectionModel``, of ``model_path`` (anything that :func:`meinst_d2.load` takes) or a loaded ``model``.

    sahi keeps masks as outlines through the centers of pixels: holes are filled.
    """

    def load_model(self) -> None:
        device = None if self.device is None else str(self.device)
        self.set_model(load(self.model_path, device=device))

    def set_model(self, model: TrainedModel) -> None:
        """
        Args:
            model: from :func:`meinst_d2.load`.
        """
        self.model, self.category_names = model, model.class_names
        self.category_mapping = {str(i): name for i, name in enumerate(model.class_names)}

    def perform_inference(self, image: np.ndarray) -> None:
        """
        Args:
            image: (H, W, 3) uint8 RGB.
        """
        self._original_predictions = {"instances": self.model(image, min_score=self.confidence_threshold)}
