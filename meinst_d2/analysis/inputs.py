"""What an analysis is made of: ground truth and results of COCO files, checked, image by image, and an encoder."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meinst_d2.checkpoint.checkpointer import info_of
from meinst_d2.checkpoint.compatibility import REFINEMENT, has_part
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.coco import read_coco
from meinst_d2.encoding import (
    ClassPCAEncoder,
    FittedEncoder,
    MaskEncoder,
    PCABasis,
    PCAEncoder,
    PixelEncoder,
    SigmoidClamp,
    fit_pca,
)
from meinst_d2.evaluation.average_precision import GroundTruth
from meinst_d2.evaluation.results import DetectedBoxes, boxes_of, read_results
from meinst_d2.fitting.count import count_moments
from meinst_d2.masks import RLE
from meinst_d2.masks.rle import UnusableInstance, areas, runs_of, tight_boxes
from meinst_d2.model_zoo.trained import load_trained
from meinst_d2.modeling.proposal_generator import settle_names


@dataclass(frozen=True)
class Objects:
    """Objects of an image, in pixels.

    Attributes:
        xyxy: (n, 4).
        classes: (n,) contiguous, by rising category id.
        rles: n masks of the whole image.
    """

    xyxy: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    rles: Sequence[RLE]

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class TruthOfImage(Objects):
    """The objects of an image, without crowd regions.

    Attributes:
        annotations: n, each with its ``area``.
        crowds: the crowd regions.
        record: ``id``, ``file_name``, ``height`` and ``width``.
    """

    annotations: Sequence[InstanceAnnotation]
    crowds: Objects
    record: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.record["height"], self.record["width"]


@dataclass(frozen=True)
class Truth:
    """An annotation file.

    Attributes:
        ground_truth: for AP.
        images: by id, in the file's order.
    """

    ground_truth: GroundTruth
    images: Mapping[Hashable, TruthOfImage]

    @property
    def annotations(self) -> list[InstanceAnnotation]:
        """Of all objects that are not crowd regions."""
        return [annotation for image in self.images.values() for annotation in image.annotations]


@dataclass(frozen=True)
class Detections(DetectedBoxes):
    """What was found in an image, by falling score: n masks, and the results as in the file."""

    rles: Sequence[RLE]
    results: Sequence[Mapping[str, Any]]


def read_truth(path: str | os.PathLike[str]) -> Truth:
    """Read a COCO instances file; a box or an area that it lacks is that of the mask.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file, or has an object without a usable mask.
    """
    dataset = read_coco(path)
    ground_truth = GroundTruth(dataset)
    of_image: list[list[tuple[InstanceAnnotation, RLE]]] = [[] for _ in dataset.images]
    for row, annotation in enumerate(dataset.annotations):
        if dataset.image_rows[row] < 0 or annotation.category < 0:
            raise ValueError(f"{dataset.name_of(row)} is of an image or a category that is not there")
        try:
            rle = ground_truth.mask_of(row)
        except UnusableInstance as error:
            raise ValueError(f"{dataset.name_of(row)} cannot be evaluated: {error.reason}") from error
        if annotation.area is None:
            annotation = replace(annotation, area=float(areas([rle])[0]))
        if np.isnan(dataset.boxes_xywh[row]).any():
            x, y, width, height = tight_boxes([rle])[0].tolist()
            annotation = replace(annotation, box=(x, y, x + width, y + height))
        of_image[dataset.image_rows[row]].append((annotation, rle))
    images = {}
    for record, found in zip(dataset.images, of_image, strict=True):
        objects, crowds = [[pair for pair in found if pair[0].iscrowd == crowd] for crowd in (False, True)]
        images[record["id"]] = TruthOfImage(
            *_arrays(objects), [a for a, _ in objects], Objects(*_arrays(crowds)), record
        )
    return Truth(ground_truth, images)


def _arrays(found: Sequence[tuple[InstanceAnnotation, RLE]]) -> tuple[Any, Any, list[RLE]]:
    xyxy = np.array([annotation.box for annotation, _ in found], np.float32).reshape(-1, 4)
    classes = np.array([annotation.category for annotation, _ in found], np.int64)
    return xyxy, classes, [rle for _, rle in found]


def read_detections(path: str | os.PathLike[str], truth: Truth) -> dict[Hashable, Detections]:
    """Detections with masks, by the id of every image of the ground truth.

    Args:
        path: as COCOEvaluator writes it: ``{"image_id", "category_id", "bbox", "score", "segmentation"}``.
        truth: of the same images.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not such a file, has no masks, or belongs to other images.
    """
    class_of_category = {id_: number for number, id_ in enumerate(truth.ground_truth.dataset.category_ids)}
    of_image: dict[Hashable, list[dict[str, Any]]] = {image_id: [] for image_id in truth.images}
    for i, entry in enumerate(read_results(path, of_image, class_of_category)):
        rle, size = entry.get("segmentation"), list(truth.images[entry["image_id"]].size)
        if not isinstance(rle, dict) or "counts" not in rle:
            fix = "evaluate with the task segm (MODEL.MASK_ON True)"
            raise ValueError(f"{path}: entry {i} has no mask, which is what is analyzed: {fix}")
        if rle.get("size") != size:
            raise ValueError(f"{path}: entry {i} has a mask of size {rle.get('size')} on an image of {size}")
        try:
            runs_of(rle, *size)  # compiled code would loop forever, or write beyond the mask
        except ValueError as error:
            raise ValueError(f"{path}: entry {i} has a mask that cannot be read: {error}") from error
        of_image[entry["image_id"]].append(entry)
    detections = {}
    for image_id, entries in of_image.items():
        best = sorted(entries, key=lambda entry: -entry["score"])
        rles = [entry["segmentation"] for entry in best]
        detections[image_id] = Detections(**vars(boxes_of(best, class_of_category)), rles=rles, results=best)
    return detections


def encoder_of(bases: Sequence[PCABasis], sigmoid: bool) -> FittedEncoder:
    """The encoder of dictionaries: one, or one per class; in evaluation mode."""
    settings = {"dim": bases[0].dim, "mask_size": bases[0].mask_size, "sigmoid": sigmoid}
    encoder = ClassPCAEncoder(num_classes=len(bases), **settings) if len(bases) > 1 else PCAEncoder(**settings)
    encoder.load_bases(bases)
    return encoder.eval()


def encoder_of_checkpoint(path: str | os.PathLike[str]) -> tuple[MaskEncoder, float | None]:
    """The encoder whose dictionary travels with a detector's weights, and None.

    Of a detector that refines its masks: the pixels of those, and the context in which they are drawn.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no dictionary, could run code, or refines masks and carries no config.
    """
    checkpoint = read_checkpoint(path)
    settle_names(checkpoint["model"])
    if has_part(checkpoint["model"], REFINEMENT):
        model = load_trained(weights=os.fspath(path), device="cpu").model
        refinement = getattr(model, "proposal_generator", model).refinement
        return PixelEncoder(mask_size=refinement.mask_size).eval(), refinement.context
    found = {key.rpartition("mask_encoder.")[2]: value for key, value in checkpoint["model"].items()}
    names = ("components", "means", "explained_variances")
    if not found.keys() >= set(names):
        fix = "name their file with --components, or leave both out to fit an encoding on the ground truth"
        raise ValueError(f"{path} holds no components of an encoder: {fix}")
    components, means, variances = (torch.as_tensor(found[name]).float().numpy() for name in names)
    if not (variances > 0).all():
        raise ValueError(f"{path} holds an encoder that was never fitted: name a file with --components")
    components = components.reshape(-1, *components.shape[-2:])
    means, variances = means.reshape(len(components), -1), variances.reshape(len(components), -1)
    # Shares of the whole variance are not in a checkpoint, and nothing here asks for them.
    bases = [PCABasis(c, m, v, v / v.sum()) for c, m, v in zip(components, means, variances, strict=True)]
    # Only logits have a mean of 0 everywhere: those of the DCT.
    return encoder_of(bases, info_of(checkpoint).get("sigmoid", bases[0].sigmoid or not means.any())), None


def fitted_encoder(annotations: Sequence[InstanceAnnotation], mask_size: int, dim: int) -> FittedEncoder:
    """An encoder of S and D fitted on the annotations' masks themselves: the best that these allow on them.

    Raises:
        ValueError: the masks determine fewer components.
    """
    basis = fit_pca(count_moments(annotations, mask_size)[0], SigmoidClamp())
    return encoder_of([basis.truncated(dim)], sigmoid=True)
