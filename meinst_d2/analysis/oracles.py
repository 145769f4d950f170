"""Masks that matched detections could have had: with no error but that of the box, of the template, of the encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
import torch

from meinst_d2.analysis.inputs import Detections, FloatArray, TruthOfImage
from meinst_d2.analysis.matching import Matching
from meinst_d2.data.instances import make_templates
from meinst_d2.encoding import MaskEncoder
from meinst_d2.masks import RLE, encode_templates

ORACLES = ("exact", "box", "template", "encoding")
"""By falling knowledge. The object's own mask: where it is; stretched from its own box over the predicted one; as an
S x S template in the predicted box; encoded and decoded in the predicted box, as in training targets."""

IN_OWN_BOX = "encoding in own box"
"""Beside them: encoded and decoded, in the object's box."""


@torch.no_grad()
def oracle_masks(
    truth: TruthOfImage, found: Detections, matching: Matching, encoder: MaskEncoder
) -> Mapping[str, Sequence[RLE]]:
    """The masks of all detections of an image for each oracle; those without an object keep their own.

    Args:
        truth: of the image.
        found: in it.
        matching: of the two.
        encoder: fitted, on the CPU, in evaluation mode.
    """
    masks = {name: list(found.objects.rles) for name in (*ORACLES, IN_OWN_BOX)}
    matched = (matching.object_of >= 0).nonzero()[0]
    templates = make_templates(truth.annotations, encoder.mask_size)
    row_of = {int(i): row for row, i in enumerate(templates.kept)}
    # An object that is too thin for a template has none: detections of it lose nothing by the encoding.
    drawn = np.array([i for i in matched if int(matching.object_of[i]) in row_of], np.int64)
    for i in matched:
        target = int(matching.object_of[i])
        rle = truth.objects.rles[target]
        masks["exact"][i] = masks[IN_OWN_BOX][i] = rle
        stretched = stretch_mask(rle, truth.objects.xyxy[target], found.objects.xyxy[i])
        for name in ORACLES[1:]:
            masks[name][i] = stretched
    if len(drawn):
        targets = matching.object_of[drawn]
        ones = torch.from_numpy(templates.masks[[row_of[int(t)] for t in targets]])
        classes = torch.from_numpy(truth.objects.classes[targets])
        decoded = encoder.decode(encoder.encode(ones, classes), classes)
        boxes, own = torch.from_numpy(found.objects.xyxy[drawn]), torch.from_numpy(truth.objects.xyxy[targets])
        drawings = {"template": (ones.float(), boxes), "encoding": (decoded, boxes), IN_OWN_BOX: (decoded, own)}
        for name, (probabilities, at) in drawings.items():
            for i, rle in zip(drawn, encode_templates(probabilities, at, *truth.size), strict=True):
                masks[name][i] = rle
    return masks


def stretch_mask(rle: RLE, source: FloatArray, target: FloatArray) -> RLE:
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


def mask_ious(masks: Sequence[RLE], truth: TruthOfImage, matching: Matching) -> npt.NDArray[np.float64]:
    """(matched,) IoU of matched detections' masks with their objects'."""
    matched = (matching.object_of >= 0).nonzero()[0].tolist()
    ious = [mask_util.iou([masks[i]], [truth.objects.rles[int(matching.object_of[i])]], [0])[0, 0] for i in matched]
    return np.array(ious, np.float64)
