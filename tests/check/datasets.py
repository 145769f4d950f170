"""A small correct dataset to spoil, and training on it as far as its data is concerned."""

import copy
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances
from detectron2.structures.masks import polygons_to_bitmask
from detectron2.utils import logger
from PIL import Image

from meinst_d2.check import Finding, Report
from meinst_d2.check.coverage import settings_of
from meinst_d2.check.report import examine
from meinst_d2.data.datasets import DatasetError, training_records
from meinst_d2.data.mapper import MEInstDatasetMapper
from meinst_d2.evaluation.coco import MEInstCOCOEvaluator
from tests.models import tiny_cfg

WIDTH, HEIGHT, IMAGES, PER_IMAGE = 64, 48, 5, 4
Content = dict[str, Any]
_numbers = itertools.count()


def square(x: float, y: float, side: float = 14.0) -> dict[str, Any]:
    """Box and polygon of a square."""
    corners = [x, y, x + side, y, x + side, y + side, x, y + side]
    return {"bbox": [x, y, side, side], "segmentation": [corners], "area": side * side}


def good_content() -> Content:
    """Images with four squares each, of two classes."""
    annotations = [
        {"id": 10 * image + k, "image_id": image, "category_id": 3 + 4 * (k % 2), "iscrowd": 0, **square(x, y)}
        for image in range(1, IMAGES + 1)
        for k, (x, y) in enumerate([(4.0, 4.0), (40.0, 4.0), (4.0, 28.0), (40.0, 28.0)])
    ]
    images = [
        {"id": image, "file_name": f"{image}.png", "height": HEIGHT, "width": WIDTH} for image in range(1, IMAGES + 1)
    ]
    categories = [{"id": 7, "name": "cross"}, {"id": 3, "name": "box"}]
    return copy.deepcopy({"images": images, "annotations": annotations, "categories": categories})


def write(folder: Path, content: Content, *, images: bool = True) -> Path:
    """Write the JSON, and images of noise for its entries."""
    path = folder / "train.json"
    path.write_text(json.dumps(content))
    if images:
        noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for number in range(1, IMAGES + 1):
            Image.fromarray(noise).save(folder / f"{number}.png")
    return path


def spoiled(folder: Path, spoil: Callable[[Content], object]) -> Path:
    """A dataset with a fault."""
    content = good_content()
    spoil(content)
    return write(folder, content)


def config() -> CfgNode:
    """At the images' own size, so that what training sees can be told by the pixel."""
    return tiny_cfg(
        *("INPUT.MIN_SIZE_TRAIN", (HEIGHT,), "INPUT.MIN_SIZE_TEST", HEIGHT, "INPUT.RANDOM_FLIP", "none"),
        *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", True),
    )


def check(path: Path, images: bool = True, **options: Any) -> Report:
    return examine(path, path.parent if images else None, settings_of(config()), **options)


def finding(report: Report, key: str) -> Finding:
    found = [finding for finding in report.findings if finding.rule.key == key]
    assert len(found) == 1, [finding.rule.key for finding in report.findings]
    return found[0]


@contextmanager
def registered(path: Path) -> Iterator[str]:
    """A name for the dataset within the block."""
    name = f"check_{next(_numbers)}"
    register_coco_instances(name, {}, str(path), str(path.parent))
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def train(path: Path) -> dict[int, Instances]:
    """What training is given of every image, by image id: loading, filtering, mapping. Raises what it raises."""
    with registered(path) as name:
        try:
            records = training_records([name])
        except DatasetError as error:
            raise error.__cause__ or error from error
        mapper = MEInstDatasetMapper(config())
        with mock.patch.object(logger, "_LOG_COUNTER", Counter()):  # ten warnings per process: not other tests'
            return {record["image_id"]: mapper(record)["instances"] for record in records}


def ap_of_the_truth(path: Path) -> dict[str, float]:
    """AP of the ground truth as predictions, in this project's evaluator."""
    with registered(path) as name:
        evaluator = MEInstCOCOEvaluator(name, distributed=False)
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            truth = record["annotations"]
            masks = [polygons_to_bitmask(list(map(np.array, a["segmentation"])), HEIGHT, WIDTH) for a in truth]
            boxes = torch.tensor([a["bbox"] for a in truth])
            boxes[:, 2:] += boxes[:, :2]
            instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes), scores=torch.ones(len(truth)))
            instances.pred_classes = torch.tensor([a["category_id"] for a in truth])
            instances.pred_masks = torch.from_numpy(np.stack(masks))
            evaluator.process([{"image_id": record["image_id"]}], [{"instances": instances}])
        return {task: values["AP"] for task, values in evaluator.evaluate().items()}
