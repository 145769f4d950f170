"""All figures of an analysis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from meinst_d2.analysis.average_precision import AveragePrecision, average_precision
from meinst_d2.analysis.inputs import Detections, Truth, TruthOfImage
from meinst_d2.analysis.matching import Matching, match
from meinst_d2.analysis.oracles import IN_OWN_BOX, ORACLES, mask_ious, oracle_masks
from meinst_d2.analysis.shares import AREA_LIMITS, Pairs, join_pairs
from meinst_d2.encoding import MaskEncoder


@dataclass(frozen=True)
class ImageError:
    """What is wrong with an image, of detections that score above the threshold.

    Attributes:
        image_id: of it.
        mask_error: sum of 1 - mask IoU over matched detections.
        missed: objects without a detection.
        false: detections without an object, outside crowd regions.
    """

    image_id: Hashable
    mask_error: float
    missed: int
    false: int

    @property
    def total(self) -> float:
        """A missed object and a false detection weigh as much as a mask without overlap."""
        return self.mask_error + self.missed + self.false


@dataclass(frozen=True)
class Analysis:
    """What there is to say of a detector's results.

    Attributes:
        class_names: contiguous.
        num_objects: that are no crowd regions, by size: all, small, medium, large.
        box: box AP.
        masks: mask AP by name of what masks there are: "predicted", those of ``ORACLES`` and ``IN_OWN_BOX``.
        pairs: of matched detections.
        images: worst first.
        score_threshold: above which detections count for ``images``.
    """

    class_names: Sequence[str]
    num_objects: tuple[int, int, int, int]
    box: AveragePrecision
    masks: Mapping[str, AveragePrecision]
    pairs: Pairs
    images: Sequence[ImageError]
    score_threshold: float

    @property
    def lost(self) -> dict[str, float]:
        """Where 100 - mask AP goes, in points of AP; they sum to it.

        What exact masks of the matched detections would not mend is the detection's; then each step towards the
        predicted masks takes its part.
        """
        detection, box, encoding = (self.masks[name].ap for name in ("exact", "box", "encoding"))
        predicted = self.masks["predicted"].ap
        return {
            "detection": 100 - detection,
            "box": detection - box,
            "encoding": box - encoding,
            "regression": encoding - predicted,
        }


def analyze(
    truth: Truth, detections: Mapping[Hashable, Detections], encoder: MaskEncoder, *, score_threshold: float = 0.5
) -> Analysis:
    """Compare detections with the ground truth, as they are and with masks that could have been.

    Args:
        truth: of every image that counts.
        detections: by image id, of each of them.
        encoder: fitted; used on the CPU.
        score_threshold: above which a detection counts as shown, for the worst images only.

    Raises:
        ValueError: the encoder has dictionaries of another number of classes.
    """
    classes = getattr(encoder, "means", np.zeros(0)).shape[0] if encoder.class_specific else len(truth.class_names)
    if classes != len(truth.class_names):
        raise ValueError(f"the encoder has {classes} classes, the ground truth {len(truth.class_names)}: name its own")
    encoder = encoder.cpu().eval()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ("predicted", *ORACLES, IN_OWN_BOX)}
    pairs, images = [], []
    for image_id, image in tqdm(truth.images.items(), desc="comparing masks", unit="image"):
        found = detections[image_id]
        matching = match(image, found)
        masks = {"predicted": found.objects.rles, **oracle_masks(image, found, matching, encoder)}
        for name, rles in masks.items():
            results[name] += [{**r, "segmentation": m} for r, m in zip(found.results, rles, strict=True)]
        ious = [mask_ious(masks[name], image, matching) for name in (*ORACLES[1:], "predicted")]
        pairs.append(_pairs(image, matching, np.stack(ious, axis=1)))
        images.append(_image_error(image_id, image, found, matching, ious[-1], score_threshold))
    return Analysis(
        truth.class_names,
        _count(truth),
        average_precision(truth.coco, results["predicted"], "bbox"),
        {name: average_precision(truth.coco, found, "segm") for name, found in results.items()},
        join_pairs(pairs),
        sorted(images, key=lambda image: -image.total),
        score_threshold,
    )


def _pairs(image: TruthOfImage, matching: Matching, ious: np.ndarray) -> Pairs:
    targets = matching.object_of[matching.object_of >= 0]
    areas = np.array([image.annotations[i].area for i in targets], np.float64)
    return Pairs(areas, image.objects.classes[targets], ious)


def _image_error(
    image_id: Hashable, image: TruthOfImage, found: Detections, matching: Matching, ious: np.ndarray, threshold: float
) -> ImageError:
    """Of an image, with the (matched,) IoU of predicted masks."""
    shown = found.scores > threshold
    matched = matching.object_of >= 0
    errors = 1 - ious[shown[matched]]
    false = int((shown & ~matched & ~matching.in_crowd).sum())
    return ImageError(image_id, float(errors.sum()), len(image.objects) - len(errors), false)


def _count(truth: Truth) -> tuple[int, int, int, int]:
    areas = np.array([annotation.area for annotation in truth.annotations], np.float64)
    found = Counter(np.searchsorted(AREA_LIMITS, areas, side="right").tolist())
    return len(areas), found[0], found[1], found[2]
