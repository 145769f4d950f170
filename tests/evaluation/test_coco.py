"""COCO's AP: the figures and files of Detectron2's evaluator with pycocotools, from masks in any form."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from meinst_d2.data.instances import from_dataset_dicts, make_templates
from meinst_d2.data.shapes import ShapesConfig, generate
from meinst_d2.evaluation import MEInstCOCOEvaluator, build_evaluator
from meinst_d2.evaluation.average_precision import average_precision
from meinst_d2.modeling.inference import postprocess
from tests.models import tiny_cfg

KINDS = ("bitmask", "rle", "template")


def register(name: str, json_file: Path, images: Path) -> Iterator[str]:
    register_coco_instances(name, {}, str(json_file), str(images))
    DatasetCatalog.get(name)  # fills in the categories
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """16 images with crowd regions, images without objects and category ids from 3."""
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"val": 16}, ShapesConfig(height=96, width=120, min_side=8, max_side=90, empty=0.1, crowd=0.3))
    file = root / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    for entry in content["annotations"]:
        entry["category_id"] += 2
    for entry in content["categories"]:
        entry["id"] += 2
    file.write_text(json.dumps(content))
    yield from register("evaluated_shapes", file, root / "val")


@pytest.fixture(scope="module")
def real_dataset(real_data: Path) -> Iterator[str]:
    file = real_data / "coco/annotations/instances_val2017.json"
    yield from register("evaluated_coco", file, real_data / "coco/val2017")


def guesses(record: dict[str, Any], rng: np.random.Generator, more: int = 20) -> Instances:
    """The objects of an image, a little off, and as many wrong detections as asked; many scores are equal."""
    annotations = from_dataset_dicts([record])
    found = make_templates(annotations, 28)
    boxes = np.array([annotations[i].box for i in found.kept]).reshape(-1, 4)
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = boxes + rng.normal(0, 0.08, boxes.shape) * sides
    corners = rng.uniform(-20, [record["width"], record["height"]], (more, 2))
    boxes = np.concatenate((boxes, np.concatenate((corners, corners + rng.uniform(1, 90, (more, 2))), 1)))
    classes = [annotations[i].category for i in found.kept] + rng.integers(0, 6, more).tolist()
    noise = rng.random((more, 28, 28)) < 0.7
    templates = np.concatenate((found.masks, noise)) * 0.9 + rng.uniform(0, 0.1, (len(boxes), 28, 28))
    result = Instances((record["height"], record["width"]))
    result.pred_boxes = Boxes(torch.from_numpy(boxes.astype(np.float32)))
    scores = rng.uniform(0, 0.6, len(boxes)) + (np.arange(len(boxes)) < len(found.kept)) * 0.4
    result.scores = torch.from_numpy(scores.astype(np.float32).round(2))
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    result.pred_masks = torch.from_numpy(templates.astype(np.float32))[:, None]
    return result


def predict(evaluator: COCOEvaluator, dataset: str, kind: str, more: int = 20) -> COCOEvaluator:
    rng = np.random.default_rng(0)
    evaluator.reset()
    for number, record in enumerate(DatasetCatalog.get(dataset)):
        found = guesses(record, rng, more)
        if number == 3:
            found = found[:0]
        output = postprocess(found, record["height"], record["width"], mask_output=kind)
        evaluator.process([record], [{"instances": output}])
    return evaluator


def assert_same_results(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for task in ours:
        assert ours[task].keys() == theirs[task].keys()
        np.testing.assert_allclose(list(ours[task].values()), list(theirs[task].values()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("most", [5, 100, 300])
def test_equals_detectron2_and_pycocotools(dataset: str, tmp_path: Path, most: int) -> None:
    """With more than 100 detections per image, so that the cap matters."""
    theirs = COCOEvaluator(
        dataset, ("bbox", "segm"), False, str(tmp_path / "theirs"), max_dets_per_image=most, use_fast_impl=False
    )
    expected = predict(theirs, dataset, "bitmask", more=130).evaluate()
    assert 5 < expected["segm"]["AP"] < 95
    for kind in KINDS:
        ours = MEInstCOCOEvaluator(dataset, distributed=False, output_dir=str(tmp_path / kind), max_dets_per_image=most)
        assert_same_results(predict(ours, dataset, kind, more=130).evaluate(), expected)
        written = [tmp_path / name / "coco_instances_results.json" for name in (kind, "theirs")]
        assert written[0].read_bytes() == written[1].read_bytes()
    found = json.loads(written[0].read_text())
    for task in ("bbox", "segm") if most == 100 else ():
        ap, theirs = average_precision(ours._truth, found, task), [*expected[task].values()]
        assert [ap.ap, ap.ap50, ap.ap75, *ap.by_size, *ap.by_class] == pytest.approx(theirs, nan_ok=True)


def test_equals_detectron2_on_real_images(real_dataset: str) -> None:
    theirs = COCOEvaluator(real_dataset, ("bbox", "segm"), distributed=False, use_fast_impl=False)
    ours = MEInstCOCOEvaluator(real_dataset, distributed=False)
    expected = predict(theirs, real_dataset, "bitmask").evaluate()
    assert_same_results(predict(ours, real_dataset, "template").evaluate(), expected)


def test_evaluating_twice_gives_the_same(dataset: str) -> None:
    evaluator = MEInstCOCOEvaluator(dataset, distributed=False)
    first = predict(evaluator, dataset, "rle").evaluate()
    assert_same_results(evaluator.evaluate(), first)
    assert_same_results(predict(evaluator, dataset, "rle").evaluate(), first)


def test_boxes_alone(dataset: str) -> None:
    ours, theirs = MEInstCOCOEvaluator(dataset, ("bbox",), False), COCOEvaluator(dataset, ("bbox",), False)
    for evaluator in (ours, theirs):
        evaluator.reset()
        for record in DatasetCatalog.get(dataset):
            found = guesses(record, np.random.default_rng(0))
            found.remove("pred_masks")
            evaluator.process([record], [{"instances": postprocess(found, record["height"], record["width"])}])
    assert_same_results(ours.evaluate(), theirs.evaluate())


def test_some_of_the_images(dataset: str) -> None:
    ours = MEInstCOCOEvaluator(dataset, distributed=False)
    theirs = COCOEvaluator(dataset, ("bbox", "segm"), distributed=False, use_fast_impl=False)
    first, second = (predict(e, dataset, "bitmask").evaluate(img_ids=[2, 5, 7]) for e in (ours, theirs))
    assert_same_results(first, second)


def test_no_detection_at_all_and_one_of_more_classes_than_the_dataset_has(dataset: str) -> None:
    evaluator = MEInstCOCOEvaluator(dataset, distributed=False)
    evaluator.reset()
    (record, *_) = DatasetCatalog.get(dataset)
    found = guesses(record, np.random.default_rng(0))
    evaluator.process([record], [{"instances": postprocess(found[:0], record["height"], record["width"])}])
    assert all(np.isnan(result["AP"]) for result in evaluator.evaluate().values())
    found.pred_classes[0] = 6
    evaluator.process([record], [{"instances": postprocess(found, record["height"], record["width"])}])
    with pytest.raises(ValueError, match="a prediction has class 6, evaluated_shapes has 6 classes"):
        evaluator.evaluate()


def test_tasks_it_does_not_know(dataset: str) -> None:
    with pytest.raises(ValueError, match="tasks has keypoints"):
        MEInstCOCOEvaluator(dataset, ("bbox", "keypoints"))


@pytest.mark.parametrize(("cap", "counted"), [(30, 100), (100, 100), (300, 300), (0, 1_000_000)])
def test_as_many_detections_count_as_the_model_gives(dataset: str, tmp_path: Path, cap: int, counted: int) -> None:
    evaluator = build_evaluator(tiny_cfg("TEST.DETECTIONS_PER_IMAGE", cap, "OUTPUT_DIR", str(tmp_path)), dataset)
    assert evaluator._max_dets_per_image == [1, 10, counted]


def test_lvis_needs_bit_masks_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    MetadataCatalog.get("evaluated_lvis").set(evaluator_type="lvis")
    with pytest.raises(ValueError, match="MASK_OUTPUT is 'rle': set it to bitmask"):
        build_evaluator(tiny_cfg("MODEL.MEINST.MASK_OUTPUT", "rle"), "evaluated_lvis")
    monkeypatch.setitem(sys.modules, "lvis", None)
    with pytest.raises(
        ValueError, match=r"evaluated_lvis is evaluated by the package lvis: run pip install 'meinst_d2"
    ):
        build_evaluator(tiny_cfg(), "evaluated_lvis")


def test_the_training_data_say_what_the_models_classes_are(dataset: str) -> None:
    """Unless they are not here, or have another number of classes."""
    names = MetadataCatalog.get(dataset).thing_classes
    for training, classes, expected in (
        ("evaluated_shuffled", names[::-1], list(range(8, 2, -1))),
        ("evaluated_fewer", names[1:], list(range(3, 9))),
        ("evaluated_gone", None, list(range(3, 9))),
    ):
        if classes is not None:
            DatasetCatalog.register(training, list)
            MetadataCatalog.get(training).thing_classes = classes
        evaluator = build_evaluator(tiny_cfg("DATASETS.TRAIN", (training,)), dataset)
        found = evaluator._in_dataset_categories([{"category_id": number} for number in range(6)])
        assert [result["category_id"] for result in found] == expected
        if classes is not None:
            DatasetCatalog.remove(training)
            MetadataCatalog.remove(training)
