"""Ground truth whose masks cannot be read is left out of the masks' AP; compiled code would loop over it forever."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from meinst_d2.evaluation import MEInstCOCOEvaluator
from meinst_d2.evaluation.ground_truth import without_unreadable_masks

HEIGHT, WIDTH = 40, 60
SQUARE = [[10.0, 10, 30, 10, 30, 30, 10, 30]]
UNREADABLE: dict[str, Any] = {
    "runs that do not add up": {"size": [HEIGHT, WIDTH], "counts": [10, 10]},
    "runs longer than the image": {"size": [HEIGHT, WIDTH], "counts": [10, 10**9]},
    "an RLE of another size": {"size": [4, 6], "counts": [10, 14]},
    "text that is no RLE": {"size": [HEIGHT, WIDTH], "counts": "zzzzzzzzzzzz"},
    "a coordinate that is no number": [[10.0, 10, float("nan"), 10, 30, 30]],
    "a flat polygon": [10.0, 10, 30, 10, 30, 30],
    "nothing": None,
}
READABLE: dict[str, Any] = {
    "a polygon": SQUARE,
    "two points": [[1.0, 1, 2, 2]],
    "an RLE": {"size": [HEIGHT, WIDTH], "counts": [10, HEIGHT * WIDTH - 10]},
}


def dataset_with(*segmentations: Any) -> dict[str, Any]:
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        | {"segmentation": x}
        for i, x in enumerate(segmentations, 1)
    ]
    image = {"id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "a.png"}
    return {"images": [image], "categories": [{"id": 1, "name": "x"}], "annotations": annotations}


@pytest.mark.parametrize("what", [*UNREADABLE, *READABLE])
def test_what_can_be_read_stays(what: str) -> None:
    dataset = dataset_with({**UNREADABLE, **READABLE}[what])
    kept, left_out = without_unreadable_masks(dataset)
    assert left_out == (what in UNREADABLE) and len(kept["annotations"]) == (what in READABLE)
    assert len(dataset["annotations"]) == 1 and kept["images"] is dataset["images"]


def test_evaluation_ends_and_says_what_it_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = UNREADABLE["runs that do not add up"]
    (tmp_path / "a.json").write_text(json.dumps(dataset_with(SQUARE, runs)))
    register_coco_instances("unreadable_masks", {}, str(tmp_path / "a.json"), str(tmp_path))
    try:
        DatasetCatalog.get("unreadable_masks")
        evaluator = MEInstCOCOEvaluator("unreadable_masks", output_dir=None)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
        mask[10:30, 10:30] = 1
        rle = mask_util.encode(mask)
        found = {"image_id": 1, "category_id": 0, "bbox": [10, 10, 20, 20], "score": 0.9}
        found["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        evaluator._predictions = [{"image_id": 1, "instances": [found]}]
        with caplog.at_level(logging.WARNING):
            results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove("unreadable_masks")
        MetadataCatalog.remove("unreadable_masks")
    assert results["segm"]["AP"] == pytest.approx(100) and results["bbox"]["AP"] == pytest.approx(50.495, abs=0.01)
    assert "Left out 1 of 2 annotations of unreadable_masks whose masks cannot be read" in caplog.text
