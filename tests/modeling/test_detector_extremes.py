"""The whole model at the ends: flat images, one pixel, 2 x 2000, logits of 1e4, half precision."""

import math
from typing import Any

import pytest
import torch
from detectron2.structures import Instances

from tests.models import image_with, tiny_model

IMAGES = {
    "black": torch.zeros(3, 64, 96, dtype=torch.uint8),
    "white": torch.full((3, 64, 96), 255, dtype=torch.uint8),
    "one pixel": torch.full((3, 1, 1), 7, dtype=torch.uint8),
    "one column": torch.full((3, 70, 1), 200, dtype=torch.uint8),
    "2 x 2000": (torch.arange(3 * 2 * 2000) % 251).to(torch.uint8).view(3, 2, 2000),
    "2000 x 2": (torch.arange(3 * 2000 * 2) % 251).to(torch.uint8).view(3, 2000, 2),
    "floats of 1e4": torch.full((3, 40, 40), 1e4),
}
PRECISIONS = ["float32", "float16", "bfloat16"]
FIXED = (
    *("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01)),
    *("MODEL.MEINST.PRIOR_PROB", 0.3),
    *("MODEL.FPN.OUT_CHANNELS", 64),  # 32 are too few for one pixel: torch normalises no group of a single value
)


def assert_sound(found: Instances, height: int, width: int) -> None:
    assert found.image_size == (height, width)
    boxes, scores = found.pred_boxes.tensor, found.scores
    assert boxes.isfinite().all() and (boxes >= 0).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
    assert scores.isfinite().all() and ((scores >= 0) & (scores <= 1)).all()
    assert found.locations.isfinite().all()
    templates = found.pred_mask_templates
    assert templates.isfinite().all() and ((templates >= 0) & (templates <= 1)).all()
    assert found.pred_mask_boxes.tensor.isfinite().all()


def model_with(precision: str = "float32", mask_output: str = "template") -> torch.nn.Module:
    """An untrained model, whose boxes reach two strides or more to every side."""
    model = tiny_model("MODEL.MEINST.PRECISION", precision, "MODEL.MEINST.MASK_OUTPUT", mask_output, *FIXED)
    torch.nn.init.constant_(model.proposal_generator.head.bbox_pred.bias, 2.0)
    return model


def predict(model: torch.nn.Module, *images: torch.Tensor, **size: int) -> list[Instances]:
    with torch.no_grad():
        return [x["instances"] for x in model.eval()([{"image": image, **size} for image in images])]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_image_gives_finite_detections(precision: str) -> None:
    model = model_with(precision)
    for name, image in IMAGES.items():
        (found,) = predict(model, image)
        assert_sound(found, *image.shape[1:])
        assert len(found) > 0, name
    together = predict(model, *(IMAGES[name] for name in ("black", "one pixel", "white")))
    assert [x.image_size for x in together] == [(64, 96), (1, 1), (64, 96)]


def test_masks_of_one_pixel_and_of_thin_images() -> None:
    masks, rles = model_with(mask_output="bitmask"), model_with(mask_output="rle")
    for name in ("one pixel", "one column", "2 x 2000"):
        shape = IMAGES[name].shape[1:]
        (found,), (encoded,) = predict(masks, IMAGES[name]), predict(rles, IMAGES[name])
        assert len(found) > 0 and found.pred_masks.shape == (len(found), *shape)
        assert {tuple(rle["size"]) for rle in encoded.pred_masks_rle} == {tuple(shape)}
    for model in (masks, rles):
        (found,) = predict(model, IMAGES["black"], height=1, width=5000)
        assert found.image_size == (1, 5000)


def scaled(precision: str, predictor: str, factor: float) -> torch.nn.Module:
    """A model one of whose convolutions gives numbers of about ``factor``."""
    model = model_with(precision)
    conv = model.proposal_generator.head.get_submodule(predictor)
    with torch.no_grad():
        conv.weight.normal_(std=factor, generator=torch.Generator().manual_seed(0))
    return model


PREDICTORS = ["cls_logits", "bbox_pred", "centerness", "mask_pred"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("layer", "factor"),
    [(name, factor) for name in PREDICTORS for factor in (1e4, 6e4)]
    + [(f"{name}.0", math.inf) for name in ("cls_tower", "bbox_tower", "mask_tower")],
)
def test_predictions_of_a_model_with_huge_logits(precision: str, layer: str, factor: float) -> None:
    """With 6e4 float16 overflows in the predictor; an infinite tower overflows everywhere."""
    model = scaled(precision, layer, factor)
    batch = [image_with([[10, 8, 40, 44]]), image_with([])]
    for found in predict(model, *(x["image"] for x in batch)):
        assert_sound(found, 64, 96)


def step(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_losses_and_gradients_with_huge_logits(predictor: str) -> None:
    model = scaled("float32", predictor, 1e4)
    for name, loss in step(model, [image_with([[10, 8, 40, 44], [50, 20, 90, 60]]), image_with([])]).items():
        assert loss.isfinite(), name
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


BOXES = {
    "none": [],
    "one pixel": [[30.0, 30.0, 31.0, 31.0]],
    "on borders": [[0.0, 20.0, 30.0, 44.0], [66.0, 20.0, 96.0, 44.0], [30.0, 0.0, 60.0, 24.0], [30, 40, 60, 64]],
    "a corner and a cell": [[0.0, 0.0, 96.0, 64.0], [95.0, 63.0, 96.0, 64.0], [4.0, 4.0, 5.0, 5.0]],
    "the first centred on the left border": [[-20.0, 10.0, 20.0, 50.0], [50.0, 20.0, 90.0, 60.0]],
    "no area": [[30.0, 30.0, 30.0, 50.0], [20.0, 20.0, 20.0, 20.0]],
    "the image": [[0.0, 0.0, 96.0, 64.0]],
    "20,000 pixels": [[-9000.0, -9000.0, 11000.0, 11000.0]],
    "hundreds": [[10.0, 10.0, 70.0, 50.0]] * 300,
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES.keys())
def test_a_training_step_on_any_boxes(boxes: list[list[float]], precision: str) -> None:
    model = model_with(precision)
    batch = [image_with(boxes), image_with([], height=1, width=1)]
    batch[0]["image"] = IMAGES["black"]
    losses = step(model, batch)
    for name, loss in losses.items():
        assert loss.isfinite() and loss.dtype == torch.float32, name
    for name in ("loss_box", "loss_mask"):  # a box of a cell or more, whose centre is in the image, has positives
        assert (losses[name] > 0) == any(8 < x1 - x0 < 200 for x0, _, x1, _ in boxes), name
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
