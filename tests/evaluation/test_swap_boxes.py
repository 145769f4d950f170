"""Masks drawn into given boxes, with a tiny Mask R-CNN."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model
from torch import nn

from meinst_d2.commands import swap_boxes as swap_boxes_command
from meinst_d2.config_file import merge_config_file
from meinst_d2.data.datasets import register_shapes
from meinst_d2.data.shapes import ShapesConfig, generate
from meinst_d2.evaluation.results import DetectedBoxes, boxes_by_image
from meinst_d2.evaluation.swap_boxes import SwapResult, in_network_pixels, masks_in_boxes, swap_boxes

TINY_MASK_RCNN = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  DEVICE: cpu
  WEIGHTS: ""
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, NORM: GN, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64]]}
  RPN: {IN_FEATURES: [p2, p3, p4], PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 30}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3], NUM_CLASSES: 6, SCORE_THRESH_TEST: 0.05}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 32, POOLER_RESOLUTION: 7}
  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 1, CONV_DIM: 16, POOLER_RESOLUTION: 7}
DATASETS: {TEST: ["shapes_val"]}
DATALOADER: {NUM_WORKERS: 0}
INPUT: {MIN_SIZE_TEST: 72}
TEST: {DETECTIONS_PER_IMAGE: 8}
VERSION: 2
"""
NUM_IMAGES = 4
IDS = range(1, NUM_IMAGES + 1), {category: category - 1 for category in range(1, 7)}  # of images; class by category


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated shapes of 96 x 128 pixels, the config, and weights that are sure of something."""
    folder = tmp_path_factory.mktemp("swap")
    size = ShapesConfig(height=96, width=128, max_objects=4, max_side=60)
    generate(folder / "shapes", {"train": 1, "val": NUM_IMAGES}, size)
    register_shapes(folder / "shapes")
    (folder / "mask_rcnn.yaml").write_text(TINY_MASK_RCNN)
    torch.manual_seed(0)
    model = build_model(config(folder))
    nn.init.normal_(model.roi_heads.mask_head.predictor.weight, std=0.5)
    nn.init.normal_(model.roi_heads.box_predictor.bbox_pred.weight, std=0.05)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


def config(folder: Path, *overrides: Any) -> CfgNode:
    cfg = get_cfg()
    merge_config_file(cfg, str(folder / "mask_rcnn.yaml"))
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.fixture(scope="module")
def model(folder: Path) -> nn.Module:
    model = build_model(config(folder)).eval()
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True)["model"])
    return model


def annotations(folder: Path) -> list[dict[str, Any]]:
    content = json.loads((folder / "shapes/annotations/instances_val.json").read_text())
    return [annotation for annotation in content["annotations"] if not annotation["iscrowd"]]


@pytest.fixture(scope="module")
def truth(folder: Path) -> Path:
    """A result file with every object's own box."""
    keys = ("image_id", "category_id", "bbox")
    file = folder / "truth.json"
    file.write_text(json.dumps([{**{k: a[k] for k in keys}, "score": 1.0} for a in annotations(folder)]))
    return file


def test_its_own_boxes_fed_back_give_its_own_masks(folder: Path, model: nn.Module) -> None:
    loader = build_detection_test_loader(config(folder), "shapes_val")
    (own,) = swap_boxes(model, loader, {"own": None}, "shapes_val", output_dir=folder / "first")
    boxes = boxes_by_image(folder / "first/own/coco_instances_results.json", *IDS)
    assert sum(map(len, boxes.values())) == len(own.scores) > 20

    changed = shifted_changed = drawn = 0
    for (inputs,) in loader:
        assert inputs["image"].shape[1:] == (72, 96)  # so that boxes are scaled on the way in and out
        found = boxes[inputs["image_id"]]
        before, after = masks_in_boxes(model, inputs, None), masks_in_boxes(model, inputs, found)
        assert torch.equal(before.pred_classes, after.pred_classes)
        torch.testing.assert_close(before.pred_boxes.tensor, after.pred_boxes.tensor, rtol=0, atol=1e-4)
        changed += (before.pred_masks != after.pred_masks).sum()
        drawn += before.pred_masks.sum()
        shifted_masks = masks_in_boxes(model, inputs, replace(found, xyxy=found.xyxy + 2)).pred_masks
        shifted_changed += (before.pred_masks != shifted_masks).sum()
    assert drawn > 500 and changed < 1e-3 * drawn and shifted_changed > 0.2 * drawn

    sources = {"again": boxes, "shifted": {i: replace(found, xyxy=found.xyxy + 2) for i, found in boxes.items()}}
    again, shifted = swap_boxes(model, loader, sources, "shapes_val")
    assert again.box == pytest.approx(own.box, nan_ok=True) and again.mask == pytest.approx(own.mask, nan_ok=True)
    assert shifted.box != own.box


def test_an_image_without_boxes_and_a_limit(folder: Path, model: nn.Module, truth: Path) -> None:
    loader = build_detection_test_loader(config(folder), "shapes_val")
    boxes = boxes_by_image(truth, *IDS)
    first, second = list(boxes)[:2]
    both, one = swap_boxes(model, loader, {"both": boxes, "first": {first: boxes[first]}}, "shapes_val", limit=3)
    assert both.num_images == one.num_images == 3
    assert both.box["AP"] == pytest.approx(100) and both.mask["AP"] < 50 and 0 < one.box["AP"] < 100
    assert len(one.scores) == len(boxes[first]) == len(both.scores) - len(boxes[second])
    assert both.boxes_per_image(0.5) == len(both.scores) / 3


def test_boxes_are_clipped_to_the_image_and_scaled_to_the_network() -> None:
    boxes = np.array([[-10, 20, 60, 120], [210, 0, 250, 50], [4, 8, 4, 9]], np.float32)
    found = DetectedBoxes(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([2, 1, 0]))
    instances = in_network_pixels(found, (100, 200), (50, 400))
    assert instances.image_size == (50, 400) and instances.pred_boxes.tensor.tolist() == [[0, 10, 120, 50]]
    assert instances.pred_classes.tolist() == [2] and instances.scores.tolist() == [pytest.approx(0.9)]
    assert found.xyxy[0, 0] == -10


def test_boxes_per_image_counts_what_scores_above_the_threshold() -> None:
    result = SwapResult("x", {}, {}, np.array([0.05, 0.06, 0.5, 0.9], np.float64), 2)
    assert [result.boxes_per_image(t) for t in (0, 0.05, 0.5, 1)] == [2, 1.5, 0.5, 0]


def test_the_command_prints_and_writes(folder: Path, truth: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config-file", str(folder / "mask_rcnn.yaml"), "--boxes", f"truth={truth}", "--limit", "3"]
    overrides = ["MODEL.WEIGHTS", str(folder / "model.pth")]
    swap_boxes_command.main([*arguments, "--output", str(folder / "out"), *overrides])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["truth"]]
    assert row[1:4] == ["100.0"] * 3 and [row[0] for row in rows if len(row) == 8] == ["own", "truth"]
    written = json.loads((folder / "out/swap_boxes.json").read_text())
    own, swapped = written["sources"]
    assert (own["name"], own["file"], written["images"]) == ("own", None, 3)
    assert swapped["file"] == str(truth) and swapped["bbox"]["AP"] == pytest.approx(100)
    assert swapped["boxes_per_image_above"]["0.95"] == swapped["boxes_per_image"]
    assert swapped["boxes_per_image"] == pytest.approx(float(row[-1]), abs=0.05)
    assert (folder / "out/swap_boxes.png").stat().st_size > 5000
    assert (folder / "out/truth/coco_instances_results.json").is_file()


DETECTION = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ({"annotations": []}, "holds a dict instead of a list of detections: it is an annotation file"),
        ([DETECTION, 7], "int instead of a detection in entry 1"),
        ([{k: v for k, v in DETECTION.items() if k != "score"}], "no 'score' in entry 0"),
        ([DETECTION | {"bbox": [0, 0, -1, 9]}], r"bbox \[0, 0, -1, 9\] is not \[x, y, width, height\]"),
        ([DETECTION | {"bbox": [0, 0, 9]}], r"bbox \[0, 0, 9\] is not"),
        ([DETECTION | {"score": float("nan")}], "score nan is not a finite number"),
        ([DETECTION | {"bbox": [0, 0, 10**400, 9]}], r"bbox \[0, 0, 10+, 9\] is not"),
        ([DETECTION | {"image_id": [1]}], r"image_id \[1\] or category_id 1 is not an id"),
        (
            [DETECTION | {"image_id": i} for i in range(1, 10)],
            r"images that the dataset does not have \(ids 3, 4, 5, 6, 7 and 1",
        ),
        ([DETECTION, DETECTION | {"category_id": 5}], "categories that the dataset does not have .ids 5.:"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_a_sentence(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        boxes_by_image(file, {1, 2, 8}, {1: 0, 3: 1})
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_classes_are_contiguous_and_other_keys_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    second = DETECTION | {"category_id": 3, "bbox": [1, 2, 3.5, 4], "segmentation": {}, "score": 1}
    file.write_text(json.dumps([DETECTION, DETECTION | {"image_id": 2}, second]))
    boxes = boxes_by_image(file, [1, 2], {1: 0, 3: 1})
    assert list(boxes) == [1, 2] and len(boxes[1]) == 2
    assert boxes[1].xyxy.tolist() == [[0, 0, 9, 9], [1, 2, 4.5, 6]] and boxes[1].classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no.yaml"], "no.yaml is neither a file nor a trained model"),
        (["MODEL.MASK_ON", "False"], "MODEL.MASK_ON is False, the model has no mask head"),
        (["MODEL.META_ARCHITECTURE", "PanopticFPN"], "PanopticFPN does not take boxes that others found"),
        (["MODEL.META_ARCHITECTURE", "MEInstDetector"], "MEInstDetector does not take boxes that others found"),
        (["MODEL.META_ARCHITECTURE", "Nothing"], "Nothing does not take boxes that others found"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "80"], "MODEL.ROI_HEADS.NUM_CLASSES is 80, the dataset needs 6"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty: name a dataset with --dataset"),
        (["MODEL.WEIGHTS", "gone.pth"], "MODEL.WEIGHTS 'gone.pth' is not a file"),
        (["--dataset", "shapes_test"], "the dataset 'shapes_test' is not registered"),
        (["--boxes", "a=gone.json"], "the result file gone.json does not exist"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_built(
    folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectron2.modeling.build_model", None)
    start = ["--config-file", str(folder / "mask_rcnn.yaml"), "--output", str(folder / "wrong")]
    options = [x for x in arguments if not x[0].isupper()] if arguments[0].startswith("--") else []
    overrides = [] if options else arguments
    weights = ["MODEL.WEIGHTS", str(folder / "model.pth")]
    with pytest.raises(SystemExit) as error:
        swap_boxes_command.main([*start, *options, *weights, *overrides])
    assert message in str(error.value) and not (folder / "wrong").exists()


def test_boxes_off_the_limit_are_an_error(folder: Path, truth: Path) -> None:
    content = json.loads(truth.read_text())
    last = max(a["image_id"] for a in content)
    file = folder / "last.json"
    file.write_text(json.dumps([a for a in content if a["image_id"] == last]))
    arguments = ["--config-file", str(folder / "mask_rcnn.yaml"), "--boxes", f"last={file}"]
    with pytest.raises(SystemExit, match="has no boxes on the images that would be evaluated: raise --limit"):
        swap_boxes_command.main([*arguments, "--limit", "1", "MODEL.WEIGHTS", str(folder / "model.pth")])
    file.write_text("[]")
    with pytest.raises(SystemExit, match="would be evaluated: give a file with boxes of this dataset"):
        swap_boxes_command.main([*arguments, "MODEL.WEIGHTS", str(folder / "model.pth")])


@pytest.mark.parametrize("boxes", ["x", "=f", "n=", "own=f", "a/b=f"])
def test_names_that_cannot_be_used(boxes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        swap_boxes_command.parse_args(["--config-file", "c.yaml", "--boxes", boxes])
    assert f"--boxes {boxes}" in capsys.readouterr().err
