"""Evaluation of a model: COCO's box and mask AP from masks in any form, at any test scale; LVIS's AP for LVIS."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from torch import nn
from tqdm import tqdm

from meinst_d2.data.coco import listed, read_coco
from meinst_d2.data.datasets import class_names as class_names_of
from meinst_d2.evaluation.average_precision import MAX_DETECTIONS, GroundTruth
from meinst_d2.files import atomic_path
from meinst_d2.masks import RLE, encode_masks, encode_templates
from meinst_d2.modeling.tiles import in_tiles

TASKS = ("bbox", "segm")
ALL_DETS = 1_000_000


class MEInstCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator for boxes and masks, with the same results and files in a fraction of the time.

    Masks may be bit masks (``pred_masks``), encodings (``pred_masks_rle``) or templates (``pred_mask_templates`` and
    ``pred_mask_boxes``). They are encoded inside their boxes, and templates without being pasted. Ids may be anything
    that Detectron2 loads; AP comes from :mod:`~meinst_d2.evaluation.average_precision`.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = TASKS,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = MAX_DETECTIONS,
        class_names: Sequence[str] | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered with Detectron2.
            tasks: "bbox", "segm" or both.
            distributed: collect the predictions of all processes.
            output_dir: folder for ``coco_instances_results.json``; None writes nothing.
            max_dets_per_image: most detections of an image that count, by score.
            class_names: of the model. Its predictions count for the dataset's class of the same name, and not at all
                where there is none; without names, for that of the same number.

        Raises:
            ValueError: a task is unknown, or the annotation file cannot be read.
        """
        if unknown := set(tasks) - set(TASKS):
            raise ValueError(f"tasks has {', '.join(sorted(unknown))}: this evaluator knows {', '.join(TASKS)}")
        limit = {"max_dets_per_image": max_dets_per_image, "use_fast_impl": False}
        super().__init__(dataset_name, tuple(tasks), distributed, output_dir, **limit)
        del self._coco_api  # the file is read again, with other ids
        path = PathManager.get_local_path(self._metadata.json_file)
        self._truth = GroundTruth(read_coco(path)) if self._do_evaluation else None
        self._categories = self._categories_of(class_names)

    def process(self, inputs: Iterable[Mapping[str, Any]], outputs: Iterable[Mapping[str, Any]]) -> None:
        """Keep the ``instances`` of the outputs for the ``image_id`` of the inputs."""
        for image, output in zip(inputs, outputs, strict=True):
            results = to_coco_results(output["instances"].to("cpu"), image["image_id"])
            self._predictions.append({"image_id": image["image_id"], "instances": results})

    def _eval_predictions(self, predictions: Sequence[Mapping[str, Any]], img_ids: Sequence[int] | None = None) -> None:
        """Write the results and fill ``self._results``; called by Detectron2's ``evaluate``."""
        results = self._in_dataset_categories(itertools.chain.from_iterable(x["instances"] for x in predictions))
        if self._output_dir:
            with atomic_path(os.path.join(self._output_dir, "coco_instances_results.json")) as temporary:
                temporary.write_text(json.dumps(results))
        if self._truth is None:
            self._logger.info("Annotations are not available for evaluation.")
            return
        names = self._truth.dataset.class_names
        if len(names) == len(self._metadata.get("thing_classes", ())):
            names = self._metadata.thing_classes
        limit = self._max_dets_per_image[-1]
        for task in sorted(self._tasks):
            found = self._truth.evaluate(results, task, max_dets=limit, image_ids=img_ids) if results else None
            self._results[task] = self._derive_coco_results(found, task, class_names=names)

    def _categories_of(self, class_names: Sequence[str] | None) -> dict[int, Any]:
        """The dataset's category id of each of the model's class numbers; None for a class that the dataset lacks."""
        numbers, names = (self._metadata.get(key) for key in ("thing_dataset_id_to_contiguous_id", "thing_classes"))
        if self._truth is not None and (numbers is None or names is None):  # not loaded by Detectron2
            dataset = self._truth.dataset
            numbers, names = {id_: number for number, id_ in enumerate(dataset.category_ids)}, dataset.class_names
        categories = {number: category for category, number in (numbers or {}).items()}
        if class_names is None or names is None or list(class_names) == list(names):
            return categories
        number_of = {name: number for number, name in enumerate(names)}
        lacking = [name for name in class_names if name not in number_of]
        unknown = [name for name in names if name not in class_names]
        if len(lacking) == len(class_names):
            has = f"it has {listed(names)}: evaluate on a dataset of the same classes"
            raise ValueError(f"{self._metadata.name} has none of the model's classes ({listed(class_names)}), {has}")
        if lacking:
            self._logger.warning(f"{self._metadata.name} lacks {listed(lacking)}: predictions of them do not count.")
        if unknown:
            self._logger.warning(f"The model does not know {listed(unknown)}: their AP is 0.")
        return {number: categories.get(number_of.get(name, -1)) for number, name in enumerate(class_names)}

    def _in_dataset_categories(self, results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The results with the dataset's category ids in place of the model's class numbers."""
        if not self._categories:
            return list(results)
        try:
            found = [{**result, "category_id": self._categories[result["category_id"]]} for result in results]
        except KeyError as error:
            count = len(self._categories)
            has = f"{self._metadata.name} has classes 0 to {count - 1}: set MODEL.MEINST.NUM_CLASSES {count}"
            raise ValueError(f"a prediction has class {error}, {has}") from error
        return [result for result in found if result["category_id"] is not None]


def to_coco_results(instances: Instances, image_id: Any) -> list[dict[str, Any]]:
    """Detections of an image in COCO's results format, with contiguous class numbers.

    Args:
        instances: on the CPU, with masks in any form or without.
        image_id: of the dataset.
    """
    fields = {name: instances.get(name) for name in ("pred_boxes", "scores", "pred_classes")}
    results = instances_to_coco_json(Instances(instances.image_size, **fields), image_id)
    rles: Sequence[RLE] = ()
    if instances.has("pred_masks_rle"):
        rles = instances.pred_masks_rle
    elif instances.has("pred_mask_templates"):
        boxes = instances.pred_mask_boxes.tensor
        rles = encode_templates(instances.pred_mask_templates, boxes, *instances.image_size)
    elif instances.has("pred_masks"):
        masks = np.asarray(instances.pred_masks).astype(np.bool_, copy=False)
        rles = encode_masks(masks, instances.pred_boxes.tensor.numpy())
    for result, rle in zip(results, rles, strict=False):
        result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
    return results


def build_evaluator(
    cfg: CfgNode, dataset_name: str, class_names: Sequence[str] | None = None, folder: str = "inference"
) -> DatasetEvaluator:
    """Box and mask AP on a dataset: LVIS's for LVIS, COCO's for every other.

    COCO's AP counts the 100 best detections of an image, or as many as the model gives where those are more; classes
    are matched by name where the training data is known. Results go to ``OUTPUT_DIR/inference``, with a folder per
    dataset where there are several.

    Args:
        cfg: of the model.
        dataset_name: registered.
        class_names: of the model; by default those of the training data, where it is known.
        folder: in ``OUTPUT_DIR``.

    Raises:
        ValueError: the masks are in a form that LVIS's evaluator does not know, or its package is not installed; or the
            dataset has none of the model's classes.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, folder)
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset_name)
    tasks = TASKS if cfg.MODEL.MASK_ON else ("bbox",)
    limit = 0 if cfg.TEST.TILES.SIZE else cfg.TEST.DETECTIONS_PER_IMAGE  # which is of a tile then
    if MetadataCatalog.get(dataset_name).get("evaluator_type") == "lvis":
        if cfg.MODEL.MASK_ON and cfg.MODEL.MEINST.MASK_OUTPUT != "bitmask":
            form = f"MODEL.MEINST.MASK_OUTPUT is {cfg.MODEL.MEINST.MASK_OUTPUT!r}: set it to bitmask"
            raise ValueError(f"LVIS is evaluated on bit masks, {form}")
        if importlib.util.find_spec("lvis") is None:
            raise ValueError(f"{dataset_name} is evaluated by the package lvis: run pip install 'meinst_d2[lvis]'")
        return LVISEvaluator(dataset_name, tasks, output_dir=folder, max_dets_per_image=limit)
    names = class_names
    for training in cfg.DATASETS.TRAIN[:1] if names is None else ():
        with suppress(ValueError, OSError):  # what was trained on need not be here
            names = class_names_of(training) if training in DatasetCatalog else None
    if names is not None and len(names) != cfg.MODEL.MEINST.NUM_CLASSES:
        names = None  # of other data than the model's
    counted = max(limit, MAX_DETECTIONS) if limit > 0 else ALL_DETS
    return MEInstCOCOEvaluator(dataset_name, tasks, output_dir=folder, max_dets_per_image=counted, class_names=names)


@torch.no_grad()
def evaluate_at_scale(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    scale: int,
    *,
    class_names: Sequence[str] | None = None,
    limit: int | None = None,
    warm_up: int = 5,
) -> dict[str, Any]:
    """Evaluate a model at a test scale on the images of a dataset, one at a time (paper, table 7).

    Args:
        cfg: of the test loader and the evaluator, not modified; results go to a folder of the scale in ``OUTPUT_DIR``.
        model: in evaluation mode; the same for every scale.
        dataset_name: registered, with annotations.
        scale: of the shorter side, in pixels.
        class_names: see :func:`build_evaluator`.
        limit: evaluate the first images only; not for LVIS, whose evaluator knows no subsets.
        warm_up: images that the model sees before the clock starts: the first calls at a new size are slow.

    Returns:
        ``scale``; ``images``, how many; ``images_per_second`` of the model alone, from an image in memory to finished
        detections; ``model_seconds_per_image``; ``loading_seconds_per_image``, that the loop waited for the loader; and
        Detectron2's results, ``{"bbox": {"AP": ...}, "segm": {"AP": ...}}``, in percent.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.MIN_SIZE_TEST, cfg.OUTPUT_DIR = scale, os.path.join(cfg.OUTPUT_DIR, str(scale))
    loader, model = build_detection_test_loader(cfg, dataset_name), in_tiles(cfg, model)
    total = len(loader) if limit is None else min(limit, len(loader))
    for inputs in itertools.islice(loader, min(warm_up, total)):
        model(inputs)
    evaluator = build_evaluator(cfg, dataset_name, class_names)
    evaluator.reset()
    image_ids, model_seconds, loading_seconds = [], 0.0, 0.0
    waiting_since = time.perf_counter()
    for inputs in tqdm(itertools.islice(loader, total), desc=f"scale {scale}", total=total):
        start = time.perf_counter()
        outputs = model(inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        loading_seconds += start - waiting_since
        model_seconds += time.perf_counter() - start
        evaluator.process(inputs, outputs)
        image_ids += [record["image_id"] for record in inputs]
        waiting_since = time.perf_counter()
    metrics = evaluator.evaluate(image_ids) if total < len(loader) else evaluator.evaluate()
    return {
        "scale": scale,
        "images": total,
        "images_per_second": total / model_seconds,
        "model_seconds_per_image": model_seconds / total,
        "loading_seconds_per_image": loading_seconds / total,
        **metrics,
    }
