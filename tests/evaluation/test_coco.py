"""COCO's AP: the figures and files of Detectron2's evaluator with pycocotools, from masks in any form."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from meinst_d2.data.coco import read_coco
from meinst_d2.data.instances import from_dataset_dicts, make_templates
from meinst_d2.evaluation import MEInstCOCOEvaluator, build_evaluator
from meinst_d2.evaluation.average_precision import GroundTruth, average_precision
from meinst_d2.modeling.inference import postprocess
from tests.models import shapes_with_ids_from_3, tiny_cfg

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
    yield from register("evaluated_shapes", shapes_with_ids_from_3(root, 16, 8), root / "val")


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
    with pytest.raises(ValueError, match="has class 6, evaluated_shapes has classes 0 to 5: set .*NUM_CLASSES 6"):
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


HEIGHT, WIDTH = 40, 60
NAME = "small_ground_truth"
SQUARE = [[10.0, 10, 30, 10, 30, 30, 10, 30]]
FAR = [[10.0, 10, 3e7, 10, 30, 30]]
UNREADABLE: dict[str, Any] = {
    "runs that do not add up": {"size": [HEIGHT, WIDTH], "counts": [10, 10]},
    "runs longer than the image": {"size": [HEIGHT, WIDTH], "counts": [10, 10**9]},
    "an RLE of another size": {"size": [4, 6], "counts": [10, 14]},
    "a string that is not an RLE": {"size": [HEIGHT, WIDTH], "counts": "zzzzzzzzzzzz"},
    "a coordinate that is not a number": [[10.0, 10, float("nan"), 10, 30, 30]],
    "a flat polygon": [10.0, 10, 30, 10, 30, 30],
    "an outline of 60 million pixels": FAR,
    "nothing": None,
}
READABLE: dict[str, Any] = {
    "a polygon": SQUARE,
    "two points": [[1.0, 1, 2, 2]],
    "an RLE": {"size": [HEIGHT, WIDTH], "counts": [10, HEIGHT * WIDTH - 10]},
    "an RLE with a run of no pixels": {"size": [HEIGHT, WIDTH], "counts": [10, 20, 0, 30, HEIGHT * WIDTH - 60]},
}


def dataset_with(*segmentations: Any) -> dict[str, Any]:
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        | {"segmentation": x}
        for i, x in enumerate(segmentations, 1)
    ]
    image = {"id": 1, "height": HEIGHT, "width": WIDTH, "file_name": "a.png"}
    return {"images": [image], "categories": [{"id": 1, "name": "x"}], "annotations": annotations}


def squares() -> dict[str, Any]:
    """Three images with six squares of two classes, one a crowd region."""
    content = dataset_with(*[SQUARE] * 6)
    at = [(1, 1, 4, 4, 20), (1, 2, 30, 10, 24), (2, 2, 3, 3, 12), (2, 1, 20, 6, 30), (3, 1, 8, 8, 16), (3, 2, 40, 9, 9)]
    for annotation, (image, category, x, y, side) in zip(content["annotations"], at, strict=True):
        annotation |= {"image_id": image, "category_id": category, "bbox": [x, y, side, side], "area": side**2}
        annotation["segmentation"] = [[x, y, x + side, y, x + side, y + side, x, y + side]]
    content["annotations"][3]["iscrowd"] = 1
    content["images"] = [{**content["images"][0], "id": i, "file_name": f"{i}.png"} for i in (1, 2, 3)]
    content["categories"] = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    return content


@pytest.fixture
def registered(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Writes and registers a dataset, loaded by Detectron2."""

    def registered(content: dict[str, Any]) -> str:
        (tmp_path / "a.json").write_text(json.dumps(content))
        register_coco_instances(NAME, {}, str(tmp_path / "a.json"), str(tmp_path))
        DatasetCatalog.get(NAME)
        return NAME

    yield registered
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def evaluate_truth(evaluator: COCOEvaluator, of_class: Callable[[int], int] = lambda k: k) -> dict[str, Any]:
    """The results of every object as a detection of score 1, of the class that ``of_class`` says; -1 finds nothing."""
    evaluator.reset()
    for record in DatasetCatalog.get(NAME):
        instances = Instances((HEIGHT, WIDTH))
        found = [x for x in record["annotations"] if not x.get("iscrowd") and of_class(x["category_id"]) >= 0]
        rles = [mask_util.merge(mask_util.frPyObjects(x["segmentation"], HEIGHT, WIDTH)) for x in found]
        boxes = np.array([x.get("bbox", mask_util.toBbox(rle)) for x, rle in zip(found, rles, strict=True)], np.float32)
        boxes = boxes.reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.from_numpy(np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)))
        instances.scores = torch.ones(len(found))
        instances.pred_classes = torch.tensor([of_class(x["category_id"]) for x in found], dtype=torch.int64)
        masks = [mask_util.decode(rle) for rle in rles]
        instances.pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, HEIGHT, WIDTH))
        evaluator.process([record], [{"instances": instances}])
    return evaluator.evaluate()


def rename(section: str, key: str, new: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    """Other ids, in the section and in the annotations that name it."""

    def apply(content: dict[str, Any]) -> None:
        for element in content[section]:
            element["id"] = new(element["id"])
        for annotation in content["annotations"] if key else ():
            annotation[key] = new(annotation[key])

    return apply


def drop(*keys: str, null: bool = False) -> Callable[[dict[str, Any]], None]:
    """Annotations without keys, or with null for them, and without the crowd region."""

    def apply(content: dict[str, Any]) -> None:
        empty = dict.fromkeys(keys) if null else {}
        found = [x for x in content["annotations"] if not x["iscrowd"]]
        content["annotations"] = [{k: v for k, v in x.items() if k not in keys} | empty for x in found]

    return apply


FORMS: dict[str, Callable[[dict[str, Any]], None]] = {
    "image ids are strings": rename("images", "image_id", lambda i: f"img_{i}"),
    "image ids are zero-padded": rename("images", "image_id", lambda i: f"{i:06}"),
    "image ids are fractions": rename("images", "image_id", lambda i: i + 0.5),
    "image ids are whole floats": rename("images", "image_id", float),
    "image ids are negative": rename("images", "image_id", lambda i: -i),
    "category ids are strings": rename("categories", "category_id", str),
    "category ids fall": rename("categories", "category_id", lambda i: -i),
    "annotation ids are strings": rename("annotations", "", lambda i: f"a{i}"),
    "annotation ids from 0": rename("annotations", "", lambda i: i - 1),
    "annotation ids are negative": rename("annotations", "", lambda i: -i),
}
MISSING: dict[str, Callable[[dict[str, Any]], None]] = {  # which Detectron2's evaluator stumbles over
    "iscrowd is null": drop("iscrowd", null=True),
    "no iscrowd": drop("iscrowd"),
    "no area": drop("area"),
    "no bbox": drop("bbox"),
    "only polygons": drop("iscrowd", "area", "bbox"),
}


@pytest.mark.parametrize("form", [*FORMS, *MISSING])
def test_ground_truth_as_predictions_has_100(form: str, registered: Callable[..., str], tmp_path: Path) -> None:
    """Wherever it has in Detectron2's evaluator, and with what that needs and the mask tells."""
    content = squares()
    {**FORMS, **MISSING}[form](content)
    registered(content)
    results = evaluate_truth(MEInstCOCOEvaluator(NAME, distributed=False, output_dir=str(tmp_path / "out")))
    assert [results[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])
    written = json.loads((tmp_path / "out/coco_instances_results.json").read_text())
    for key, section in (("image_id", "images"), ("category_id", "categories")):  # the file's own ids
        assert {result[key] for result in written} == {element["id"] for element in content[section]}
    theirs = COCOEvaluator(NAME, ("bbox", "segm"), distributed=False, use_fast_impl=False)
    if form in MISSING:
        with pytest.raises((KeyError, TypeError)):
            evaluate_truth(theirs)
    elif not form.startswith("annotation ids"):  # where those matter, theirs can be less
        assert evaluate_truth(theirs) == {task: pytest.approx(row, nan_ok=True) for task, row in results.items()}


def test_an_odd_number_of_coordinates_is_read_like_pycocotools(registered: Callable[..., str]) -> None:
    registered(dataset_with([[*SQUARE[0], 5.0]]))
    rle = GroundTruth(read_coco(MetadataCatalog.get(NAME).json_file)).mask_of(0)
    assert rle == mask_util.merge(mask_util.frPyObjects([[*SQUARE[0], 5.0]], HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("names", "ap"), [(["b", "a"], [100, 100]), (["c", "b", "d", "a"], [100, 100]), (["a"], [100, 0])]
)
def test_classes_are_matched_by_name(names: list[str], ap: list[float], registered: Callable[..., str]) -> None:
    """The model's classes in another order, with others between, and fewer than the dataset has."""
    registered(squares())
    evaluator = MEInstCOCOEvaluator(NAME, distributed=False, class_names=names)
    results = evaluate_truth(evaluator, lambda k: names.index("ab"[k]) if "ab"[k] in names else -1)
    assert [results["segm"][f"AP-{name}"] for name in "ab"] == pytest.approx(ap)


def test_fewer_classes_than_the_model(registered: Callable[..., str], caplog: pytest.LogCaptureFixture) -> None:
    content = squares()
    content["annotations"] = [x | {"category_id": 7} for x in content["annotations"] if x["category_id"] == 2]
    content["categories"] = [{"id": 7, "name": "b"}]
    registered(content)
    with caplog.at_level(logging.WARNING):
        evaluator = MEInstCOCOEvaluator(NAME, distributed=False, class_names=["a", "b"])
    results = evaluate_truth(evaluator, lambda k: 1)
    assert results["bbox"]["AP"] == pytest.approx(100) and f"{NAME} lacks a: " in caplog.text
    evaluator._predictions[0]["instances"][0]["category_id"] = 0  # an "a" does not count
    assert evaluator.evaluate()["bbox"]["AP"] < 100
    with pytest.raises(ValueError, match="has none of the model's classes .c, d., it has b: evaluate on"):
        MEInstCOCOEvaluator(NAME, distributed=False, class_names=["c", "d"])


def test_results_of_an_image_that_is_not_there(registered: Callable[..., str]) -> None:
    registered(squares())
    truth = GroundTruth(read_coco(MetadataCatalog.get(NAME).json_file))
    result = {"image_id": 4, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1.0}
    with pytest.raises(ValueError, match=r"a result is of image 4, which .*a.json does not have"):
        truth.evaluate([result], "bbox")


@pytest.mark.parametrize("what", [*UNREADABLE, *READABLE])
def test_what_can_be_read_stays(what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Beside an object that is found: alone it counts for all masks; of the boxes it is one of two."""
    file = tmp_path / "a.json"
    file.write_text(json.dumps(dataset_with(SQUARE, {**UNREADABLE, **READABLE}[what])))
    truth = GroundTruth(read_coco(file))
    rle = mask_util.merge(mask_util.frPyObjects(SQUARE, HEIGHT, WIDTH))
    found = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.9, "segmentation": rle}
    with caplog.at_level(logging.WARNING):
        ap = average_precision(truth, [found], "segm").ap
    assert ap == pytest.approx(100 if what in UNREADABLE else 50.495, abs=0.01)
    said = f"Left out 1 of 2 annotations of {file} whose masks cannot be read: meinst check {file} says which."
    assert (said in caplog.text) == (what in UNREADABLE)
    assert average_precision(truth, [found], "bbox").ap == pytest.approx(50.495, abs=0.01)


def test_the_evaluator_ends_and_leaves_out_what_cannot_be_read(registered: Callable[..., str]) -> None:
    registered(dataset_with(SQUARE, UNREADABLE["runs that do not add up"]))
    evaluator = MEInstCOCOEvaluator(NAME, distributed=False)
    rle = mask_util.merge(mask_util.frPyObjects(SQUARE, HEIGHT, WIDTH))
    found = {"image_id": 1, "category_id": 0, "bbox": [10, 10, 20, 20], "score": 0.9, "segmentation": rle}
    evaluator._predictions = [{"image_id": 1, "instances": [found]}]
    results = evaluator.evaluate()
    assert results["segm"]["AP"] == pytest.approx(100) and results["bbox"]["AP"] == pytest.approx(50.495, abs=0.01)
