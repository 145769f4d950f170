"""Detections are matched with objects and given masks that could have been; AP and IoU say what each step loses."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.structures import BitMasks
from pycocotools import mask as coco_mask
from torchvision.ops import box_iou
from tqdm import tqdm

from meinst_d2.analysis.inputs import Detections, Truth, TruthOfImage
from meinst_d2.data.instances import make_templates
from meinst_d2.encoding import ClassPCAEncoder, MaskEncoder
from meinst_d2.evaluation.average_precision import SIZES, AveragePrecision, average_precision
from meinst_d2.fcos.boxes import enlarge
from meinst_d2.masks import RLE, encode_templates
from meinst_d2.masks.paste import move_mask
from meinst_d2.masks.rle import decode_rle
from meinst_d2.masks.rle import ious as ious_of

MATCHING_IOU = 0.5
ORACLES = ("exact", "box", "template", "encoding")
"""By falling knowledge. The object's own mask: where it is; stretched from its own box over the predicted one; as an
S x S template in the predicted box; encoded and decoded in the predicted box, as in training targets. Of refined masks:
where it is; what of it lies in the enlarged predicted box; as S x S pixels there; the same."""
IN_OWN_BOX = "encoding in own box"
"""Beside them: encoded and decoded, in the object's box."""
PARTS = ("box", "template", "coefficients", "regression")
"""Of the mask error, in the order in which an exact mask becomes the predicted one."""
AREA_LIMITS = (32**2, 96**2)  # COCO's


def match(truth: TruthOfImage, found: Detections) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Give each detection, by falling score, the free object of its class that its box overlaps most.

    Boxes must have an IoU of 0.5 at least. Masks play no part, so that a match says nothing about them.

    Returns:
        (detections,) the object of each, or -1; and whether half or more of the mask of one without an object lies in
        a crowd region of its class: neither right nor wrong.
    """
    object_of, in_crowd = np.full(len(found), -1, np.int64), np.zeros(len(found), bool)
    if len(truth) and len(found):
        iou = box_iou(torch.from_numpy(found.xyxy), torch.from_numpy(truth.xyxy)).numpy()
        iou[found.classes[:, None] != truth.classes] = 0
        for i, row in enumerate(iou):
            best = int(row.argmax())
            if row[best] >= MATCHING_IOU:
                object_of[i] = best
                iou[i + 1 :, best] = 0
    if len(truth.crowds) and len(found):
        inside = ious_of(found.rles, truth.crowds.rles, crowd=True)
        inside[found.classes[:, None] != truth.crowds.classes] = 0
        in_crowd = (object_of < 0) & (inside.max(axis=1) >= 0.5)
    return object_of, in_crowd


@torch.no_grad()
def oracle_masks(
    truth: TruthOfImage,
    found: Detections,
    object_of: npt.NDArray[np.int64],
    encoder: MaskEncoder,
    context: float | None = None,
) -> dict[str, list[RLE]]:
    """The masks of all detections of an image for each oracle; those without an object keep their own.

    Args:
        truth, found, object_of: the image, and of each detection the object or -1.
        encoder: fitted, on the CPU, in evaluation mode.
        context: of refined masks, see :func:`analyze`.
    """
    masks = {name: list(found.rles) for name in (*ORACLES, IN_OWN_BOX)}
    matched = (object_of >= 0).nonzero()[0]
    if context is not None:
        oracles = refined_oracles(truth, found.xyxy[matched], object_of[matched], encoder, context)
        for i, of_object in zip(matched, oracles, strict=True):
            for name, rle in of_object.items():
                masks[name][i] = rle
        return masks
    templates = make_templates(truth.annotations, encoder.mask_size)
    row_of = {i: row for row, i in enumerate(templates.kept.tolist())}
    for i, target in zip(matched, object_of[matched], strict=True):
        masks["exact"][i] = masks[IN_OWN_BOX][i] = truth.rles[target]
        stretched = move_mask(truth.rles[target], truth.xyxy[target], found.xyxy[i])
        for name in ORACLES[1:]:
            masks[name][i] = stretched
    # An object that is too thin for a template has none: detections of it lose nothing by the encoding.
    drawn = [i for i in matched if object_of[i] in row_of]
    if drawn:
        targets = object_of[drawn]
        ones = torch.from_numpy(templates.masks[[row_of[t] for t in targets]])
        classes = torch.from_numpy(truth.classes[targets])
        decoded = encoder.decode(encoder.encode(ones, classes), classes)
        boxes, own = torch.from_numpy(found.xyxy[drawn]), torch.from_numpy(truth.xyxy[targets])
        drawings = {"template": (ones.float(), boxes), "encoding": (decoded, boxes), IN_OWN_BOX: (decoded, own)}
        for name, (probabilities, at) in drawings.items():
            for i, rle in zip(drawn, encode_templates(probabilities, at, *truth.size), strict=True):
                masks[name][i] = rle
    return masks


def refined_oracles(
    truth: TruthOfImage,
    xyxy: npt.NDArray[np.float32],
    targets: npt.NDArray[np.int64],
    encoder: MaskEncoder,
    context: float,
) -> Iterator[dict[str, RLE]]:
    """Of every matched detection its object's mask for each oracle, as refined masks are drawn.

    Args:
        truth: of the image.
        xyxy: (n, 4), the detections' boxes.
        targets: (n,), their objects.
        encoder: of S x S pixels.
        context: how much longer than a box the sides are of where a mask is drawn.
    """
    own = torch.from_numpy(truth.xyxy[targets])
    regions, own_regions = enlarge(torch.from_numpy(xyxy), context), enlarge(own, context)
    for target, *places in zip(targets, regions, own_regions, strict=True):
        where = torch.stack(places)
        mask = torch.from_numpy(decode_rle(truth.rles[target], *truth.size)).bool()
        ones = BitMasks(mask.expand(2, -1, -1)).crop_and_resize(where, encoder.mask_size)
        drawn, in_own_box = encode_templates(encoder.decode(encoder.encode(ones)), where, *truth.size)
        x0, y0, x1, y1 = where[0].round().int().clamp(min=0).tolist()
        inside = torch.zeros_like(mask)
        inside[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
        cut = coco_mask.encode(np.asfortranarray(inside, np.uint8))
        yield {"exact": truth.rles[target], "box": cut, "template": drawn, "encoding": drawn, IN_OWN_BOX: in_own_box}


@dataclass(frozen=True)
class Pairs:
    """Matched detections and their objects.

    Attributes:
        areas: (n,) of the objects, in pixels.
        classes: (n,) contiguous.
        ious: (n, 4) mask IoU with the object of the stretched mask, the template, the encoding and the prediction.
    """

    areas: npt.NDArray[np.float64]
    classes: npt.NDArray[np.int64]
    ious: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def mean_ious(self) -> list[float]:
        """The four means; NaN without any pair."""
        return self.ious.mean(axis=0).tolist() if len(self) else [math.nan] * 4

    @property
    def error(self) -> float:
        """The mask error: 1 - the predictions' mean IoU."""
        return 1 - self.mean_ious[-1]

    @property
    def parts(self) -> dict[str, float]:
        """What each of ``PARTS`` adds to the error; they sum to it. A part is negative where it mends another."""
        return dict(zip(PARTS, (-np.diff([1.0, *self.mean_ious])).tolist(), strict=True))

    @property
    def shares(self) -> dict[str, float]:
        """Of box, encoding (template and coefficients) and regression in the error; NaN where there is no error."""
        stretched, _, encoded, predicted = self.mean_ious
        parts = {"box": 1 - stretched, "encoding": stretched - encoded, "regression": encoded - predicted}
        return {name: part / self.error if self.error > 1e-9 else math.nan for name, part in parts.items()}

    def by_size(self) -> dict[str, Pairs]:
        """All, and those of small, medium and large objects."""
        sizes = np.searchsorted(AREA_LIMITS, self.areas, side="right")  # numbers in SIZES
        return {"all": self, **{name: self._where(sizes == size) for size, name in enumerate(SIZES)}}

    def by_class(self, num_classes: int) -> list[Pairs]:
        """Those of every class."""
        return [self._where(self.classes == k) for k in range(num_classes)]

    def _where(self, chosen: npt.NDArray[np.bool_]) -> Pairs:
        return Pairs(self.areas[chosen], self.classes[chosen], self.ious[chosen])


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
        refined: whether the masks are refined ones.
    """

    class_names: Sequence[str]
    num_objects: tuple[int, ...]
    box: AveragePrecision
    masks: Mapping[str, AveragePrecision]
    pairs: Pairs
    images: Sequence[ImageError]
    score_threshold: float
    refined: bool = False

    @property
    def lost(self) -> dict[str, float]:
        """Where 100 - mask AP goes, in points: what exact masks would not mend, then each step's part of the rest."""
        kept = [100.0, *(self.masks[name].ap for name in ("exact", "box", "encoding", "predicted"))]
        return dict(zip(("detection", "box", "encoding", "regression"), (-np.diff(kept)).tolist(), strict=True))

    def worst_classes(self) -> list[int]:
        """The classes that have objects, by rising mask AP."""
        mask = self.masks["predicted"].by_class
        return sorted((k for k, ap in enumerate(mask) if not math.isnan(ap)), key=lambda k: mask[k])


def analyze(
    truth: Truth,
    detections: Mapping[Hashable, Detections],
    encoder: MaskEncoder,
    *,
    context: float | None = None,
    score_threshold: float = 0.5,
) -> Analysis:
    """Compare detections with the ground truth, as they are and with masks that could have been.

    Args:
        truth: of every image that counts.
        detections: by image id, of each of them.
        encoder: fitted; used on the CPU. Of refined masks a PixelEncoder of their size.
        context: None for masks that codes draw in the boxes; of refined masks ``MODEL.MEINST.REFINE.CONTEXT``.
        score_threshold: above which a detection counts as shown, for the worst images only.

    Raises:
        ValueError: the encoder has dictionaries of another number of classes.
    """
    names = truth.ground_truth.dataset.class_names
    if isinstance(encoder, ClassPCAEncoder) and len(encoder.means) != len(names):
        count = len(encoder.means)
        raise ValueError(f"the encoder's number of classes is {count}, the ground truth's {len(names)}: name its own")
    encoder = encoder.cpu().eval()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ("predicted", *ORACLES, IN_OWN_BOX)}
    pairs, images = [], []  # area, class and IoUs of every matched detection
    for image_id, image in tqdm(truth.images.items(), desc="comparing masks", unit="image"):
        found, errors = detections[image_id], []
        object_of, in_crowd = match(image, found)
        masks = {"predicted": found.rles, **oracle_masks(image, found, object_of, encoder, context)}
        for name, rles in masks.items():
            results[name] += [{**r, "segmentation": m} for r, m in zip(found.results, rles, strict=True)]
        for i in (object_of >= 0).nonzero()[0]:
            annotation, rle = image.annotations[object_of[i]], image.rles[object_of[i]]
            ious = ious_of([masks[name][i] for name in (*ORACLES[1:], "predicted")], [rle])[:, 0]
            pairs.append((annotation.area, annotation.category, *ious))
            if found.scores[i] > score_threshold:
                errors.append(1 - ious[-1])
        false = int(((found.scores > score_threshold) & (object_of < 0) & ~in_crowd).sum())
        images.append(ImageError(image_id, float(np.sum(errors)), len(image) - len(errors), false))
    rows = np.array(pairs, np.float64).reshape(-1, 6)
    areas = np.array([annotation.area for annotation in truth.annotations], np.float64)
    sizes = np.bincount(np.searchsorted(AREA_LIMITS, areas, side="right"), minlength=len(SIZES))
    return Analysis(
        names,
        (len(areas), *sizes.tolist()),
        average_precision(truth.ground_truth, results["predicted"], "bbox"),
        {name: average_precision(truth.ground_truth, found, "segm") for name, found in results.items()},
        Pairs(rows[:, 0], rows[:, 1].astype(np.int64), rows[:, 2:]),
        sorted(images, key=lambda image: -image.total),
        score_threshold,
        context is not None,
    )
