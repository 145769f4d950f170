"""Detections with the sizes and shapes of real objects, without a trained model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.source import Source
from meinst_d2.data.coco import read_coco
from meinst_d2.data.instances import make_templates
from meinst_d2.encoding import PixelMoments, SigmoidClamp, fit_pca

MASK_SIZE, DIM = 28, 60


@dataclass(frozen=True)
class Detections:
    """What a model finds in one image of H x W pixels, before pasting.

    Attributes:
        record: ``image_id``, ``height`` and ``width``.
        templates: (n, S, S) float32 probabilities.
        boxes: (n, 4) float32 ``xyxy`` in pixels of the image.
        scores: (n,) float32.
        classes: (n,) int64, contiguous.
    """

    record: dict[str, Any]
    templates: torch.Tensor
    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor


class ObjectPool:
    """The objects of a dataset, as an encoder of 60 components reconstructs them."""

    def __init__(self, source: Source, seed: int = 0) -> None:
        dataset = read_coco(source.json_file)
        annotations = dataset.annotations
        found = make_templates(annotations, MASK_SIZE)
        self.templates = _reconstructed(found.masks)
        kept = [annotations[i] for i in found.kept.tolist()]
        self.boxes = np.array([a.box for a in kept])
        self.sizes = np.array([a.image_size for a in kept])
        self.image_ids = np.array([dataset.images[row]["id"] for row in dataset.image_rows[found.kept]])
        self.classes = np.array([a.category for a in kept])
        self.records = [{"image_id": x["id"], "height": x["height"], "width": x["width"]} for x in dataset.images]
        self.rng = np.random.default_rng(seed)

    def draw(self, count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Templates (n, S, S) and boxes (n, 4) of random objects, in an image of this size."""
        chosen = self.rng.permutation(np.resize(self.rng.permutation(len(self.boxes)), count))
        scale = (np.array([height, width]) / self.sizes[chosen])[:, [1, 0, 1, 0]]
        return self.templates[chosen], torch.from_numpy((self.boxes[chosen] * scale).astype(np.float32))

    def detect(self, record: dict[str, Any], count: int) -> Detections:
        """The objects of an image with their boxes a little off, and random ones with lower scores."""
        own = (self.image_ids == record["image_id"]).nonzero()[0][:count]
        sides = self.boxes[own, 2:] - self.boxes[own, :2]
        shift = self.rng.normal(0, 0.04, (len(own), 4)) * np.concatenate((sides, sides), 1)
        templates, boxes = self.draw(count - len(own), record["height"], record["width"])
        classes = self.rng.choice(self.classes, count - len(own))
        return Detections(
            record,
            torch.cat((self.templates[own], templates)),
            torch.cat((torch.from_numpy((self.boxes[own] + shift).astype(np.float32)), boxes)),
            torch.from_numpy(np.sort(self.rng.uniform(0.05, 1, count))[::-1].astype(np.float32).copy()),
            torch.from_numpy(np.concatenate((self.classes[own], classes)).astype(np.int64)),
        )

    def detect_all(self, images: int, count: int) -> Iterator[Detections]:
        """Detections of the first images."""
        for record in self.records[:images]:
            yield self.detect(record, count)


def _reconstructed(masks: np.ndarray) -> torch.Tensor:
    """(M, S, S) float32 probabilities: the masks encoded with their first components and decoded."""
    clamp = SigmoidClamp(0.01, 0.05)
    moments = PixelMoments(MASK_SIZE)
    moments.update(masks)
    basis = fit_pca(moments, clamp).truncated(DIM)
    logits = np.where(masks.reshape(len(masks), -1), 1, -1) * clamp.logit_moments()[0] - basis.mean
    decoded = torch.from_numpy(logits @ basis.components.T @ basis.components + basis.mean)
    return decoded.sigmoid().float().reshape(masks.shape)
