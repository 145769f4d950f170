"""From a dataset record to a training sample, with every mask as its S x S template."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import detectron2.data.detection_utils as utils
import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.logger import log_first_n
from threadpoolctl import ThreadpoolController

from meinst_d2.data.augmentation import AlbumentationsPipeline, AugmentedImage, bounds, build_augmentations
from meinst_d2.data.image_files import read_image
from meinst_d2.data.instances import from_dict, why_unusable
from meinst_d2.masks.rasterize import crop_bitmask, rasterize_polygons
from meinst_d2.masks.rle import UnusableInstance, bitmask_of, usable_polygons

KEPT = ("file_name", "image_id", "height", "width")
"""What a sample has of its record."""
SMALLEST_BOX = 1e-5
"""Boxes with a side of at most this many pixels after augmentation are dropped, as Detectron2 drops them."""
THREADS = ThreadpoolController()
"""Of numpy's matrix products. These are small here, and the threads of OpenBLAS wait for the next one without sleeping:
on a CPU they would take the processor from what trains.
"""


class MEInstDatasetMapper:
    """Reads and augments an image, and makes its instances.

    Differs from Detectron2's mapper in the masks: each instance may have polygons, an RLE or a bit mask, and becomes
    a template here, in the loader's worker, once. Crowd regions and unusable annotations are left out; an image may
    end up without instances.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        mask_size: int | None,
        fine_size: int | None = None,
        recompute_boxes: bool = False,
        pipeline: AlbumentationsPipeline | None = None,
    ) -> None:
        """
        Args:
            augmentations: applied in order.
            image_format: as in ``INPUT.FORMAT``.
            mask_size: S, or None to make no masks.
            fine_size: T, of a second template, or None to make none.
            recompute_boxes: fit boxes to the masks after augmentation, for crops that cut objects.
            pipeline: applied after the augmentations.
        """
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format, self.mask_size, self.recompute_boxes = image_format, mask_size, recompute_boxes
        self.fine_size, self.pipeline = fine_size, pipeline

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        refine, pipeline = cfg.MODEL.MEINST.REFINE, cfg.INPUT.ALBUMENTATIONS
        return {
            "augmentations": build_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "mask_size": cfg.MODEL.MEINST.MASK_SIZE if cfg.MODEL.MASK_ON else None,
            "fine_size": refine.TARGET_SIZE if cfg.MODEL.MASK_ON and refine.ENABLED else None,
            "recompute_boxes": (cfg.INPUT.CROP.ENABLED or cfg.INPUT.SCALE_JITTER.ENABLED) and cfg.MODEL.MASK_ON,
            "pipeline": AlbumentationsPipeline(pipeline, cfg.INPUT.FORMAT) if pipeline else None,
        }

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """
        Args:
            record: of one image, in Detectron2's dataset format; not modified.

        Returns:
            ``file_name``, ``image_id``, ``height`` and ``width`` of the record, ``image`` (3, H, W) uint8, and
            ``instances`` with ``gt_boxes``, ``gt_classes`` and, with masks, ``gt_mask_templates`` (M, S, S) bool.
        """
        return self.finish(record, self.augment(record))

    def augment(self, record: Mapping[str, Any]) -> AugmentedImage:
        """The image of a record and the instances that can be learned from, after augmentation."""
        image = read_image(record["file_name"], self.image_format)
        utils.check_image_size(dict(record), image)  # which adds to what it is given
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        with _naming(record), THREADS.limit(limits=1, user_api="blas"):
            augmented = self._augment_annotations(record, aug_input.image, transforms)
        return augmented if self.pipeline is None else self.pipeline(augmented)

    def finish(self, record: Mapping[str, Any], augmented: AugmentedImage) -> dict[str, Any]:
        """The sample of a record whose image and instances are as given."""
        sample: dict[str, Any] = {key: record[key] for key in KEPT if key in record}
        sample["image"] = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())
        instances = Instances(augmented.image.shape[:2])
        instances.gt_boxes = Boxes(torch.from_numpy(augmented.boxes))
        instances.gt_classes = torch.tensor(augmented.classes, dtype=torch.int64)
        with _naming(record), THREADS.limit(limits=1, user_api="blas"):
            for name, size in (("gt_mask_templates", self.mask_size), ("gt_fine_templates", self.fine_size)):
                if size is not None:
                    templates = _make_templates(augmented.segmentations, augmented.boxes, size)
                    instances.set(name, torch.from_numpy(templates))
        return sample | {"instances": instances}

    def _augment_annotations(
        self, record: Mapping[str, Any], image: np.ndarray, transforms: T.TransformList
    ) -> AugmentedImage:
        annotations, segmentations = [], []
        for annotation in record.get("annotations", ()):
            if annotation.get("iscrowd", 0):
                continue
            try:
                if self.mask_size is not None:
                    segmentations.append(_transform_segmentation(annotation.get("segmentation"), record, transforms))
                annotations.append(annotation)
            except UnusableInstance as error:
                _warn_of(record, error.reason)
        if self.recompute_boxes:
            boxes = np.array([bounds(segmentation) for segmentation in segmentations], np.float32).reshape(-1, 4)
        else:
            boxes = _transform_boxes(annotations, transforms, image.shape[:2])
        has_area = ((boxes[:, 2:] - boxes[:, :2]) > SMALLEST_BOX).all(axis=1)
        for i in (~has_area).nonzero()[0].tolist():
            _warn_of(record, why_unusable(from_dict(annotations[i], record), masks=False))  # unless a crop cut it away
        keep = has_area.nonzero()[0].tolist()
        if self.mask_size is None:  # a pipeline moves boxes as it moves masks
            segmentations = [[boxes[i, [0, 1, 2, 1, 2, 3, 0, 3]]] for i in range(len(boxes))]
        classes = [int(annotations[i]["category_id"]) for i in keep]
        return AugmentedImage(image, classes, boxes[keep], [segmentations[i] for i in keep])


@contextmanager
def _naming(record: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, errors name the record that they are about."""
    try:
        yield
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        reason = f"({type(error).__name__} {error}): meinst check says what is wrong with them"
        raise ValueError(f"the annotations of {record['file_name']} cannot be used {reason}") from error


def _warn_of(record: Mapping[str, Any], reason: str) -> None:
    if reason:
        log_first_n(logging.WARNING, f"{record.get('file_name')}: left out an instance: {reason}", n=10)


def _transform_boxes(
    annotations: Sequence[Mapping[str, Any]], transforms: T.TransformList, image_size: tuple[int, int]
) -> np.ndarray:
    """(M, 4) float32 ``xyxy`` after augmentation, clipped to the image."""
    boxes = np.zeros((len(annotations), 4))
    modes = np.array([annotation["bbox_mode"] for annotation in annotations])
    for mode in np.unique(modes):
        at = (modes == mode).nonzero()[0]
        given = np.array([annotations[i]["bbox"] for i in at], np.float32)  # as Detectron2 rounds them
        boxes[at] = BoxMode.convert(given, BoxMode(mode), BoxMode.XYXY_ABS)
    height, width = image_size
    return np.minimum(transforms.apply_box(boxes).clip(min=0), [width, height, width, height]).astype(np.float32)


def _transform_segmentation(segmentation: Any, record: Mapping[str, Any], transforms: T.TransformList) -> Any:
    if isinstance(segmentation, list):
        polygons = [polygon.reshape(-1, 2) for polygon in usable_polygons(segmentation)]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    mask = bitmask_of(segmentation, (record["height"], record["width"]))
    return transforms.apply_segmentation(np.ascontiguousarray(mask, np.uint8))


def _make_templates(segmentations: Sequence[Any], boxes: np.ndarray, mask_size: int) -> np.ndarray:
    masks = np.zeros((len(segmentations), mask_size, mask_size), bool)
    polygon_at = [i for i, segmentation in enumerate(segmentations) if isinstance(segmentation, list)]
    masks[polygon_at] = rasterize_polygons([segmentations[i] for i in polygon_at], boxes[polygon_at], mask_size)
    for i, segmentation in enumerate(segmentations):
        if not isinstance(segmentation, list):
            masks[i] = crop_bitmask(segmentation, boxes[i], mask_size)
    return masks
