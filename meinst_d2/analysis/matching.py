"""Which detection is of which object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import torch
from torchvision.ops import box_iou

from meinst_d2.analysis.inputs import Detections, IntArray, TruthOfImage

MATCHING_IOU = 0.5


@dataclass(frozen=True)
class Matching:
    """Detections of an image and its objects.

    Attributes:
        object_of: (detections,) the object, or -1.
        in_crowd: (detections,) without an object, but half or more of the mask in a crowd region of its class: neither
            right nor wrong.
    """

    object_of: IntArray
    in_crowd: npt.NDArray[np.bool_]


def match(truth: TruthOfImage, found: Detections) -> Matching:
    """Give each detection, by falling score, the free object of its class that its box overlaps most.

    Boxes must have an IoU of 0.5 at least. Masks play no part, so that a match says nothing about them.
    """
    objects, detected = truth.objects, found.objects
    object_of = np.full(len(detected), -1, np.int64)
    if len(objects) and len(detected):
        iou = box_iou(torch.from_numpy(detected.xyxy), torch.from_numpy(objects.xyxy)).numpy()
        iou[detected.classes[:, None] != objects.classes] = 0
        for i, row in enumerate(iou):
            best = int(row.argmax())
            if row[best] >= MATCHING_IOU:
                object_of[i] = best
                iou[i + 1 :, best] = 0
    in_crowd = np.zeros(len(detected), bool)
    if len(truth.crowds) and len(detected):
        inside = mask_util.iou(list(detected.rles), list(truth.crowds.rles), [1] * len(truth.crowds))
        inside = np.where(detected.classes[:, None] == truth.crowds.classes, inside, 0)
        in_crowd = (object_of < 0) & (inside.max(axis=1) >= 0.5)
    return Matching(object_of, in_crowd)
