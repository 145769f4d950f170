"""COCO's box and mask AP, from masks in any form that the model gives them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from faster_coco_eval import COCO, COCOeval_faster

from meinst_d2.evaluation.ground_truth import without_unreadable_masks
from meinst_d2.files import atomic_path
from meinst_d2.masks import RLE, encode_masks, encode_templates

TASKS = ("bbox", "segm")


class MEInstCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for boxes and masks, with the same results and files in a fraction of the time.

    Masks may be bit masks (``pred_masks``), encodings (``pred_masks_rle``) or templates (``pred_mask_templates`` and
    ``pred_mask_boxes``). They are encoded inside their boxes, and templates without being pasted. The matching is
    faster-coco-eval's, which equals pycocotools' and needs no compiled Detectron2.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = TASKS,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 100,
    ) -> None:
        """
        Args:
            dataset_name: registered with Detectron2.
            tasks: "bbox", "segm" or both.
            distributed: collect the predictions of all processes.
            output_dir: folder for ``coco_instances_results.json``; None writes nothing.
            max_dets_per_image: most detections of an image that count, by score.
        """
        unknown = set(tasks) - set(TASKS)
        if unknown:
            raise ValueError(f"tasks has {', '.join(sorted(unknown))}: this evaluator knows {', '.join(TASKS)}")
        super().__init__(
            dataset_name,
            tuple(tasks),
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
        )
        self._ground_truth: dict[str, COCO] = {}  # by task

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """
        Args:
            inputs: with ``image_id``.
            outputs: with ``instances``.
        """
        for image, output in zip(inputs, outputs, strict=True):
            results = to_coco_results(output["instances"].to("cpu"), image["image_id"])
            self._predictions.append({"image_id": image["image_id"], "instances": results})

    def _eval_predictions(self, predictions: Sequence[Mapping[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Write the results and fill ``self._results``; called by Detectron2's ``evaluate``."""
        results = self._in_dataset_categories(itertools.chain.from_iterable(x["instances"] for x in predictions))
        if self._output_dir:
            with atomic_path(os.path.join(self._output_dir, "coco_instances_results.json")) as temporary:
                temporary.write_text(json.dumps(results))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        classes = self._metadata.get("thing_classes")
        for task in sorted(self._tasks):
            evaluated = self._evaluate(results, task, img_ids) if results else None
            self._results[task] = self._derive_coco_results(evaluated, task, class_names=classes)

    def _in_dataset_categories(self, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results with the dataset's category ids in place of contiguous class numbers."""
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return list(results)
        categories = {number: category for category, number in contiguous.items()}
        try:
            return [{**result, "category_id": categories[result["category_id"]]} for result in results]
        except KeyError as error:
            raise ValueError(
                f"a prediction has class {error}, {self._metadata.name} has {len(categories)} classes: "
                "set MODEL.MEINST.NUM_CLASSES to that"
            ) from error

    def _evaluate(self, results: Sequence[Mapping[str, Any]], task: str, img_ids: Sequence[int] | None) -> Any:
        if task not in self._ground_truth:
            self._ground_truth[task] = self._read_ground_truth(task)
        ground_truth = self._ground_truth[task]
        # COCO adds to the results. For masks the box goes, so that areas are those of the masks.
        left_out = "bbox" if task == "segm" else "segmentation"
        found = ground_truth.loadRes([{k: v for k, v in x.items() if k != left_out} for x in results])
        evaluation = COCOeval_faster(ground_truth, found, task, print_function=self._logger.info)
        evaluation.params.maxDets = self._max_dets_per_image
        if img_ids is not None:
            evaluation.params.imgIds = list(img_ids)
        evaluation.run()
        return evaluation

    def _read_ground_truth(self, task: str) -> COCO:
        dataset, left_out = self._coco_api.dataset, 0
        if task == "segm":
            dataset, left_out = without_unreadable_masks(dataset)
        if left_out:
            self._logger.warning(
                f"Left out {left_out} of {len(self._coco_api.dataset['annotations'])} annotations of "
                f"{self._metadata.name} whose masks cannot be read: meinst check says which."
            )
        return COCO(dataset)


def to_coco_results(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """Detections of an image in COCO's results format, with contiguous class numbers.

    Args:
        instances: on the CPU, with masks in any form or without.
        image_id: of the dataset.
    """
    fields = {name: instances.get(name) for name in ("pred_boxes", "scores", "pred_classes")}
    results = instances_to_coco_json(Instances(instances.image_size, **fields), image_id)
    for result, rle in zip(results, encodings_of(instances), strict=False):
        result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return results


def encodings_of(instances: Instances) -> Sequence[RLE]:
    """The masks of detections as COCO encodings; none where there are no masks."""
    if instances.has("pred_masks_rle"):
        return instances.pred_masks_rle
    if instances.has("pred_mask_templates"):
        boxes = instances.pred_mask_boxes.tensor
        return encode_templates(instances.pred_mask_templates, boxes, *instances.image_size)
    if instances.has("pred_masks"):
        masks = np.asarray(instances.pred_masks).astype(np.bool_, copy=False)
        return encode_masks(masks, instances.pred_boxes.tensor.numpy())
    return []
