"""Detections are matched with objects and given masks that could have been; AP and IoU say what each step loses."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import torch
from torchvision.ops import box_iou
from tqdm import tqdm

from meinst_d2.analysis.inputs import Detections, Truth, TruthOfImage
from meinst_d2.data.instances import make_templates
from meinst_d2.encoding import MaskEncoder
from meinst_d2.evaluation.average_precision import SIZES, AveragePrecision, average_precision
from meinst_d2.masks import RLE, encode_templates

MATCHING_IOU = 0.5
ORACLES = ("exact", "box", "template", "encoding")
"""By falling knowledge. The object's own mask: where it is; stretched from its own box over the predicted one; as an
S x S template in the predicted box; encoded and decoded in the predicted box, as in training targets."""
IN_OWN_BOX = "encoding in own box"
"""Beside them: encoded and decoded, in the object's box."""
PARTS = ("box", "template", "coefficients", "regression")
"""Of the mask error, in the order in which an exact mask becomes the predicted one."""
AREA_LIMITS = (32**2, 96**2)  # COCO's


@dataclass(frozen=True)
class Matching:
    """Detections of an image and its objects.

    Attributes:
        object_of: (detections,) the object, or -1.
        in_crowd: (detections,) without an object, but half or more of the mask in a crowd region of its class: neither
            right nor wrong.
    """

    object_of: npt.NDArray[np.int64]
    in_crowd: npt.NDArray[np.bool_]


def match(truth: TruthOfImage, found: Detections) -> Matching:
    """Give each detection, by falling score, the free object of its class that its box overlaps most.

    Boxes must have an IoU of 0.5 at least. Masks play no part, so that a match says nothing about them.
    """
    objects, crowds = truth.objects, truth.crowds
    object_of, in_crowd = np.full(len(found), -1, np.int64), np.zeros(len(found), bool)
    if len(objects) and len(found):
        iou = box_iou(torch.from_numpy(found.xyxy), torch.from_numpy(objects.xyxy)).numpy()
        iou[found.classes[:, None] != objects.classes] = 0
        for i, row in enumerate(iou):
            best = int(row.argmax())
            if row[best] >= MATCHING_IOU:
                object_of[i] = best
                iou[i + 1 :, best] = 0
    if len(crowds) and len(found):
        inside = mask_util.iou(list(found.rles), list(crowds.rles), [1] * len(crowds))
        inside = np.where(found.classes[:, None] == crowds.classes, inside, 0)
        in_crowd = (object_of < 0) & (inside.max(axis=1) >= 0.5)
    return Matching(object_of, in_crowd)


@torch.no_grad()
def oracle_masks(
    truth: TruthOfImage, found: Detections, matching: Matching, encoder: MaskEncoder
) -> dict[str, list[RLE]]:
    """The masks of all detections of an image for each oracle; those without an object keep their own.

    Args:
        truth: of the image.
        found: in it.
        matching: of the two.
        encoder: fitted, on the CPU, in evaluation mode.
    """
    masks = {name: list(found.rles) for name in (*ORACLES, IN_OWN_BOX)}
    templates = make_templates(truth.annotations, encoder.mask_size)
    row_of = {int(i): row for row, i in enumerate(templates.kept)}
    matched = (matching.object_of >= 0).nonzero()[0]
    for i in matched:
        target = int(matching.object_of[i])
        rle = truth.objects.rles[target]
        masks["exact"][i] = masks[IN_OWN_BOX][i] = rle
        stretched = stretch_mask(rle, truth.objects.xyxy[target], found.xyxy[i])
        for name in ORACLES[1:]:
            masks[name][i] = stretched
    # An object that is too thin for a template has none: detections of it lose nothing by the encoding.
    drawn = [i for i in matched if int(matching.object_of[i]) in row_of]
    if drawn:
        targets = matching.object_of[drawn]
        ones = torch.from_numpy(templates.masks[[row_of[int(t)] for t in targets]])
        classes = torch.from_numpy(truth.objects.classes[targets])
        decoded = encoder.decode(encoder.encode(ones, classes), classes)
        boxes, own = torch.from_numpy(found.xyxy[drawn]), torch.from_numpy(truth.objects.xyxy[targets])
        drawings = {"template": (ones.float(), boxes), "encoding": (decoded, boxes), IN_OWN_BOX: (decoded, own)}
        for name, (probabilities, at) in drawings.items():
            for i, rle in zip(drawn, encode_templates(probabilities, at, *truth.size), strict=True):
                masks[name][i] = rle
    return masks


def stretch_mask(rle: RLE, source: npt.NDArray[np.float32], target: npt.NDArray[np.float32]) -> RLE:
    """A mask, moved and scaled as one box must be to become another.

    Args:
        rle: of an image.
        source: (4,) ``xyxy``.
        target: (4,) ``xyxy``.
    """
    mask: npt.NDArray[np.uint8] = mask_util.decode(rle)
    old, new = source[2:] - source[:2], target[2:] - target[:2]
    scale = new.astype(np.float64) / np.maximum(old, 1e-3)
    # Pixel i has its centre at i + 0.5, cv2 has it at i.
    offset = target[:2] - scale * source[:2] + 0.5 * (scale - 1)
    matrix = np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]]])
    moved = cv2.warpAffine(255 * mask, matrix, mask.shape[::-1], flags=cv2.INTER_LINEAR)
    encoded: RLE = mask_util.encode(np.asfortranarray(moved >= 128, np.uint8))
    return encoded


@dataclass(frozen=True)
class MaskError:
    """Mean over some matched detections.

    Attributes:
        count: of them.
        ious: mean mask IoU of the stretched mask, the template, the encoding and the prediction; NaN without any.
    """

    count: int
    ious: tuple[float, float, float, float]

    @property
    def error(self) -> float:
        """1 - the predictions' mean IoU."""
        return 1 - self.ious[-1]

    @property
    def parts(self) -> dict[str, float]:
        """What each of ``PARTS`` adds to the error; they sum to it. A part is negative where it mends another."""
        return dict(zip(PARTS, (-np.diff((1.0, *self.ious))).tolist(), strict=True))

    @property
    def encoding(self) -> float:
        """The template's part and the coefficients': the same detections with the objects' own encoded masks."""
        return self.ious[0] - self.ious[2]

    @property
    def shares(self) -> dict[str, float]:
        """Of box, encoding and regression in the error, summing to 1; NaN where there is no error."""
        parts = {"box": self.parts["box"], "encoding": self.encoding, "regression": self.parts["regression"]}
        return {name: part / self.error if self.error > 1e-9 else math.nan for name, part in parts.items()}


@dataclass(frozen=True)
class Pairs:
    """Every detection that has an object.

    Attributes:
        areas: (n,) of the objects, in pixels.
        classes: (n,) contiguous.
        ious: (n, 4) mask IoU with the object of the stretched mask, the template, the encoding and the prediction.
    """

    areas: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    ious: npt.NDArray[np.float64]

    def error(self, chosen: npt.NDArray[np.bool_] | None = None) -> MaskError:
        """The mean of all pairs, or of those chosen."""
        ious = self.ious if chosen is None else self.ious[chosen]
        return MaskError(len(ious), tuple(ious.mean(axis=0).tolist()) if len(ious) else (math.nan,) * 4)

    def by_size(self) -> list[MaskError]:
        """Of small, medium and large objects."""
        return [self.error(_sizes(self.areas) == size) for size in range(len(SIZES))]

    def by_class(self, num_classes: int) -> list[MaskError]:
        """Of every class."""
        return [self.error(self.classes == k) for k in range(num_classes)]


def _sizes(areas: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The number in ``SIZES`` of every area."""
    return np.searchsorted(AREA_LIMITS, areas, side="right")


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
        num_objects: that are not crowd regions, by size: all, small, medium, large.
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

    def worst_classes(self) -> list[int]:
        """The classes that have objects, by rising mask AP."""
        mask = self.masks["predicted"].by_class
        return sorted((k for k, ap in enumerate(mask) if not math.isnan(ap)), key=lambda k: mask[k])


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
    areas, classes_of, ious, images = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros((0, 4))], []
    for image_id, image in tqdm(truth.images.items(), desc="comparing masks", unit="image"):
        found = detections[image_id]
        matching = match(image, found)
        masks = {"predicted": found.rles, **oracle_masks(image, found, matching, encoder)}
        for name, rles in masks.items():
            results[name] += [{**r, "segmentation": m} for r, m in zip(found.results, rles, strict=True)]
        pairs = [(i, int(target)) for i, target in enumerate(matching.object_of) if target >= 0]
        compared = [
            [
                mask_util.iou([masks[name][i]], [image.objects.rles[k]], [0])[0, 0]
                for name in (*ORACLES[1:], "predicted")
            ]
            for i, k in pairs
        ]
        targets = [k for _, k in pairs]
        ious.append(np.array(compared, np.float64).reshape(-1, 4))
        areas.append(np.array([image.annotations[k].area for k in targets], np.float64))
        classes_of.append(image.objects.classes[targets])
        shown, matched = found.scores > score_threshold, matching.object_of >= 0
        errors = 1 - ious[-1][shown[matched], -1]
        false = int((shown & ~matched & ~matching.in_crowd).sum())
        images.append(ImageError(image_id, float(errors.sum()), len(image.objects) - len(errors), false))
    small, medium, large = np.bincount(
        _sizes(np.array([a.area for a in truth.annotations], np.float64)), minlength=3
    ).tolist()
    return Analysis(
        truth.class_names,
        (small + medium + large, small, medium, large),
        average_precision(truth.ground_truth, results["predicted"], "bbox"),
        {name: average_precision(truth.ground_truth, found, "segm") for name, found in results.items()},
        Pairs(np.concatenate(areas), np.concatenate(classes_of), np.concatenate(ious)),
        sorted(images, key=lambda image: -image.total),
        score_threshold,
    )
