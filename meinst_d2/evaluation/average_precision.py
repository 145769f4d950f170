"""COCO's average precision: the one way from ground truth and results to AP.

The matching is faster-coco-eval's, which equals pycocotools'. It knows ids that are whole numbers only, and takes an
annotation 0 for none. So images, categories and annotations are renumbered from 1, and a file may have any ids.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from meinst_d2.data.coco import CocoDataset
from meinst_d2.masks import RLE
from meinst_d2.masks.rasterize import to_rles
from meinst_d2.masks.rle import FEW_POINTS, MALFORMED, UnusableInstance, areas, rle_of, tight_boxes

MAX_DETECTIONS = 100
"""Of an image, by score: COCO's limit."""
SIZES = ("small", "medium", "large")
logger = logging.getLogger(__name__)


class GroundTruth:
    """The objects of a COCO file, as detections are matched with them.

    Attributes:
        dataset: the file.
        image_numbers: from 1, by image id, in the order of Detectron2's evaluator, which ranks equal scores.
        category_numbers: from 1, by category id.
    """

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset
        ids = [image["id"] for image in dataset.images]
        with suppress(TypeError):  # ids of several types have no order
            ids.sort()
        self.image_numbers = {id_: number for number, id_ in enumerate(ids, 1)}
        self.category_numbers = {id_: number for number, id_ in enumerate(dataset.category_ids, 1)}
        self._renumbered: dict[str, COCO] = {}  # by task

    def mask_of(self, row: int) -> RLE:
        """The mask of annotation number ``row`` in the whole image, as pycocotools draws it.

        Raises:
            UnusableInstance: it has none that can be read, or only polygons of fewer than 3 points.
        """
        annotation = self.dataset.annotations[row]
        segmentation = annotation.segmentation
        if isinstance(segmentation, list):
            try:
                segmentation = [part[: len(part) // 2 * 2] for part in segmentation]  # passes over an odd coordinate
            except (TypeError, KeyError) as error:
                raise UnusableInstance(MALFORMED) from error
        return rle_of(segmentation, annotation.image_size)

    def evaluate(
        self,
        results: Iterable[Mapping[str, Any]],
        task: str,
        *,
        max_dets: int = MAX_DETECTIONS,
        image_ids: Collection[Hashable] | None = None,
    ) -> COCOeval_faster:
        """Match results with the objects, as COCO does; those of categories that the file lacks are passed over.

        Args:
            results: in COCO's results format, with ids of the file; not changed.
            task: "bbox" or "segm".
            max_dets: most detections of an image and a class that count, by score.
            image_ids: evaluate these only.

        Returns:
            The finished evaluation: ``stats``, and ``eval["precision"]`` of (10 thresholds, 101 recalls, K classes, 4
            sizes, 3 limits).

        Raises:
            ValueError: a result is of an image that the file does not have.
        """
        # COCO takes the area of the box for that of the object where there is a box.
        key = "segmentation" if task == "segm" else "bbox"
        renumbered = []
        for result in results:
            category = self.category_numbers.get(result["category_id"])
            image = self.image_numbers.get(result["image_id"])
            if image is None:
                name = repr(result["image_id"])
                raise ValueError(f"a result is of image {name}, which {self.dataset.path} does not have")
            if category is not None:
                found = {key: result[key], "score": result["score"]}
                renumbered.append({"image_id": image, "category_id": category, **found})
        if task not in self._renumbered:
            self._renumbered[task] = self._renumber(task)
        truth = self._renumbered[task]
        evaluation = COCOeval_faster(truth, truth.loadRes(renumbered), task, print_function=logger.info)
        evaluation.params.maxDets = [1, 10, max_dets]
        if image_ids is not None:
            evaluation.params.imgIds = [self.image_numbers[id_] for id_ in image_ids if id_ in self.image_numbers]
        evaluation.run()
        return evaluation

    def _renumber(self, task: str) -> COCO:
        """The dataset for a task. A box or an area that is missing is the mask's; what has neither is left out."""
        dataset, annotations, left_out = self.dataset, [], 0
        for row, annotation in enumerate(dataset.annotations):
            image_row, box = dataset.image_rows[row], dataset.boxes_xywh[row]
            if image_row < 0 or annotation.category < 0:
                continue  # COCO passes over it
            has_box, rle = not np.isnan(box).any(), None
            if task == "segm" or annotation.area is None or not has_box:
                try:
                    rle = self.mask_of(row)
                except UnusableInstance as error:
                    if error.reason == FEW_POINTS:
                        size = list(annotation.image_size)
                        rle = to_rles([{"size": size, "counts": [size[0] * size[1]]}], *size)[0]
            if rle is None and (task == "segm" or not has_box):
                left_out += 1
                continue
            area = annotation.area
            if area is None:
                area = float(box[2] * box[3] if rle is None else areas([rle])[0])
            image = self.image_numbers[dataset.images[image_row]["id"]]
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": annotation.category + 1}
            annotations.append(entry | {"area": area, "iscrowd": int(annotation.iscrowd), "segmentation": rle})
            if task == "bbox":
                annotations[-1]["bbox"] = (box if has_box else tight_boxes([rle])[0]).tolist()
        if left_out:
            why = (
                f"whose {'masks' if task == 'segm' else 'boxes'} cannot be read: meinst check {dataset.path} says which"
            )
            logger.warning(f"Left out {left_out} of {len(dataset.annotations)} annotations of {dataset.path} {why}.")
        images = [{**image, "id": self.image_numbers[image["id"]]} for image in dataset.images]
        categories = [{"id": number} for number in self.category_numbers.values()]
        return COCO({"images": images, "categories": categories, "annotations": annotations})


@dataclass(frozen=True)
class AveragePrecision:
    """In percent; NaN where the ground truth has no such objects.

    Attributes:
        ap, ap50, ap75: of all objects.
        by_size: of small, medium and large ones.
        by_class: of each class.
    """

    ap: float
    ap50: float
    ap75: float
    by_size: tuple[float, ...]
    by_class: tuple[float, ...]


def average_precision(truth: GroundTruth, results: Iterable[Mapping[str, Any]], task: str) -> AveragePrecision:
    """COCO's AP of results in memory: in all, by size and by class; arguments as :meth:`GroundTruth.evaluate`'s.

    All results of an image count, also where they are more than COCO's 100.
    """
    results = list(results)
    of_image = Counter(result["image_id"] for result in results)
    evaluation = truth.evaluate(results, task, max_dets=max(MAX_DETECTIONS, *of_image.values(), 0))
    ap, ap50, ap75, *by_size = (100 * float(value) if value >= 0 else math.nan for value in evaluation.stats[:6])
    by_class = []
    for precision in np.moveaxis(evaluation.eval["precision"][:, :, :, 0, -1], 2, 0):
        known = precision[precision > -1]
        by_class.append(100 * float(known.mean()) if known.size else math.nan)
    return AveragePrecision(ap, ap50, ap75, tuple(by_size), tuple(by_class))


def without_nan(value: Any) -> Any:
    """Figures for JSON: NaN, of a class or a size without objects, becomes null, in dicts and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
