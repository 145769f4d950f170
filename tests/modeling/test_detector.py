"""The whole model on the images that break others."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.modeling import build_model
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm

from meinst_d2.config import channels_last_of
from tests.models import image_with, tiny_cfg, tiny_model, write_components

LOSSES = {"loss_cls", "loss_box", "loss_centerness", "loss_mask"}
ONE = [[10.0, 8.0, 50.0, 48.0]]
TWO = [[4.0, 4.0, 40.0, 30.0], [50.0, 20.0, 90.0, 60.0]]


def train(model: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, float]:
    model.train()
    model.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    return {name: loss.item() for name, loss in losses.items()}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return tiny_model("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01))


@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_an_image_without_instances_anywhere_in_the_batch(model: torch.nn.Module, position: str) -> None:
    batch = [image_with(ONE), image_with(TWO)]
    with_empty = list(batch)
    with_empty.insert({"first": 0, "middle": 1, "last": 2}[position], image_with([]))
    losses, without = train(model, with_empty), train(model, batch)
    # The empty image adds negatives; boxes and masks do not see it.
    assert losses["loss_cls"] > without["loss_cls"]
    for name in LOSSES - {"loss_cls"}:
        assert losses[name] == pytest.approx(without[name], rel=1e-4)


def test_masks_stay_with_their_image_when_others_are_empty_or_without_positives(model: torch.nn.Module) -> None:
    """The published implementation pairs them wrongly."""
    too_small = image_with([[5.0, 5.0, 6.0, 6.0]])
    losses = train(model, [image_with([]), too_small, image_with(TWO)])
    assert losses["loss_mask"] == pytest.approx(train(model, [image_with(TWO)])["loss_mask"], rel=1e-4)


def test_only_empty_images_and_only_images_without_positives(model: torch.nn.Module) -> None:
    for batch in ([image_with([])], [image_with([]), image_with([])], [image_with([[5.0, 5.0, 6.0, 6.0]])]):
        losses = train(model, batch)
        assert losses["loss_cls"] > 0 and losses["loss_box"] == losses["loss_centerness"] == losses["loss_mask"] == 0


def test_identical_boxes_learn_the_mask_of_the_instance_that_was_assigned(model: torch.nn.Module) -> None:
    sample = image_with(ONE * 2)
    masks = sample["instances"].gt_mask_templates
    first = train(model, [sample])["loss_mask"]
    sample["instances"].gt_mask_templates = masks[[0, 0]]
    assert train(model, [sample])["loss_mask"] == pytest.approx(first)
    sample["instances"].gt_mask_templates = masks[[1, 0]]
    assert train(model, [sample])["loss_mask"] != pytest.approx(first)


def test_batches_of_detectron2s_own_mapper_work(model: torch.nn.Module) -> None:
    square = [12.0, 10, 48, 10, 48, 46, 12, 46]
    annotation = {"bbox": [12, 10, 48, 46], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "segmentation": [square]}
    losses = []
    for mask_format in ("polygon", "bitmask"):
        sample = image_with([])
        sample["instances"] = annotations_to_instances([annotation], (64, 96), mask_format)
        empty = image_with([])
        empty["instances"] = annotations_to_instances([], (64, 96), mask_format)
        losses.append(train(model, [empty, sample]))
    assert losses[0] == pytest.approx(losses[1])  # a square fills its box either way


def test_masks_that_are_missing_or_of_another_size_are_one_sentence(model: torch.nn.Module) -> None:
    sample = image_with(ONE)
    sample["instances"].remove("gt_mask_templates")
    with pytest.raises(ValueError, match="set MODEL.MASK_ON False"):
        train(model, [sample])
    with pytest.raises(ValueError, match=r"templates of \(14, 14\), the model has MODEL.MEINST.MASK_SIZE = 28"):
        train(model, [image_with(ONE, mask_size=14)])


def test_plain_fcos_needs_no_components_and_no_masks() -> None:
    model = tiny_model("MODEL.MASK_ON", False)
    sample = image_with(ONE)
    sample["instances"].remove("gt_mask_templates")
    assert set(train(model, [sample])) == LOSSES - {"loss_mask"}
    assert not any("mask" in name for name in model.state_dict())
    model.eval()
    with torch.no_grad():
        assert not model([sample])[0]["instances"].has("pred_masks")


@pytest.mark.parametrize("training", [True, False])
def test_a_model_without_components_says_how_to_make_them(training: bool) -> None:
    model = tiny_model()
    model.proposal_generator.mask_encoder = type(model.proposal_generator.mask_encoder)(dim=8)
    model.train(training)
    with pytest.raises(RuntimeError, match=r"no mask components.*meinst fit --dataset NAME"):
        model([image_with(ONE)])


def test_a_batch_gives_each_image_what_it_gets_alone(model: torch.nn.Module) -> None:
    model.eval()
    images = [image_with(ONE), image_with(TWO)]
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["instances"].pred_classes, b["instances"].pred_classes)
        torch.testing.assert_close(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


def test_iou_losses_can_be_chosen() -> None:
    values = set()
    for kind in ("giou", "iou", "linear_iou"):
        model = tiny_model("MODEL.MEINST.BOX_LOSS_TYPE", kind)
        with torch.no_grad():  # a box that crosses the ground truth's
            model.proposal_generator.head.bbox_pred.bias.copy_(torch.tensor([1.0, 9.0, 1.0, 9.0]))
        values.add(train(model, [image_with(ONE)])["loss_box"])
    assert len(values) == 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.MEINST.NORM", "BN", "MODEL.MEINST.NORM = 'BN' is none of GN, none"),
        ("MODEL.MEINST.DEFORM_CONV", "DCN", "is none of none, last"),
        ("MODEL.MEINST.BOX_LOSS_TYPE", "l1", "is none of giou, iou, linear_iou"),
        ("MODEL.MEINST.IN_FEATURES", ["p3", "p7"], "asks for p7, the backbone .* gives p3, p4, p5"),
        ("MODEL.MEINST.SIZES_OF_INTEREST", [32], "3 feature levels need 2 sizes of interest"),
        ("MODEL.MEINST.TOP_LEVELS", 3, "TOP_LEVELS = 3 must be 0, 1"),
    ],
)
def test_impossible_configs_are_refused_when_the_model_is_built(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(key, value)


def test_the_path_of_the_components_is_taken_literally(tmp_path: Path) -> None:
    """The published loader replaces every "60" in it by the dimension."""
    path = write_components(tmp_path / "160gb" / "agnosticTrue_60.npz")
    assert build_model(tiny_cfg("MODEL.MEINST.COMPONENTS", str(path))).proposal_generator.mask_encoder.is_fitted


def test_components_that_do_not_fit_are_found_when_the_model_is_built(tmp_path: Path) -> None:
    path = write_components(tmp_path / "c.npz", dim=9)
    with pytest.raises(ValueError, match="D = 9 and S = 28, the encoder needs D = 8 and S = 28"):
        build_model(tiny_cfg("MODEL.MEINST.COMPONENTS", str(path)))


def test_top_levels_are_built_as_asked() -> None:
    for top_levels, features, sizes in ((1, ["p3", "p4", "p5", "p6"], [32, 64, 128]), (2, ["p3", "p7"], [64])):
        model = tiny_model(
            *("MODEL.MEINST.TOP_LEVELS", top_levels, "MODEL.MEINST.IN_FEATURES", features),
            *("MODEL.MEINST.SIZES_OF_INTEREST", sizes),
        )
        strides = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
        assert model.proposal_generator.assignment_rule.strides == tuple(strides[name] for name in features)
        with torch.no_grad():
            features = model.backbone(torch.zeros(1, 3, 192, 256))
        assert [tuple(f.shape[2:]) for f in features.values()] == [(24, 32), (12, 16), (6, 8), (3, 4), (2, 2)][
            : 3 + top_levels
        ]


def test_losses_need_no_value_of_the_device() -> None:
    """Tensors of the meta device have no values: whatever needs one (item, nonzero, a comparison) raises."""
    model = tiny_model().train()
    assert model.proposal_generator.mask_encoder.is_fitted  # asked once, before training
    model.to("meta")
    losses = model([image_with(TWO), image_with([])])
    assert all(loss.device.type == "meta" for loss in losses.values())
    sum(losses.values()).backward()


def test_the_counts_of_all_processes_are_exchanged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01)).train()
    alone = model([image_with(TWO)])
    calls = []

    def all_reduce(tensor: torch.Tensor) -> None:
        calls.append(tensor.shape)
        tensor.mul_(6)  # the other process has five times as many

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    shared = model([image_with(TWO)])
    assert calls == [(2,)]
    for name in alone:
        assert shared[name].item() == pytest.approx(alone[name].item() / 3)


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


BATCH = [image_with([[10, 8, 40, 44], [50, 20, 90, 60]], classes=[3, 5]), image_with([])]
TOLERANCE = {"bfloat16": 0.03, "float16": 0.004}  # relative, of the losses of a small model


def pair(*overrides: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    fixed = ("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01), "MODEL.MEINST.PRIOR_PROB", 0.3)
    return tiny_model(*fixed), tiny_model(*fixed, *overrides)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_losses_are_float32_and_close(precision: str) -> None:
    full, half = (model(BATCH) for model in pair("MODEL.MEINST.PRECISION", precision))
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=TOLERANCE[precision]), name
    assert any(half[name] != full[name] for name in full)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_predictions_are_close(precision: str) -> None:
    models = pair("MODEL.MEINST.PRECISION", precision)
    with torch.no_grad():
        full, half = (model.eval()(BATCH)[0]["instances"] for model in models)
    assert half.scores.dtype == half.pred_boxes.tensor.dtype == torch.float32
    assert abs(len(half) - len(full)) <= 0.1 * len(full)
    torch.testing.assert_close(half.scores[:10], full.scores[:10], rtol=0, atol=0.02)


def test_detectron2s_switch_means_float16() -> None:
    assert tiny_model("SOLVER.AMP.ENABLED", True).precision == "float16"
    assert tiny_model("SOLVER.AMP.ENABLED", True, "MODEL.MEINST.PRECISION", "bfloat16").precision == "bfloat16"


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    (_, plain), (_, last) = (pair("MODEL.MEINST.CHANNELS_LAST", choice) for choice in ("never", "auto"))
    assert plain.preprocess_image(BATCH).tensor.is_contiguous()
    assert last.proposal_generator.head.cls_logits.weight.is_contiguous(memory_format=torch.channels_last)
    assert last.preprocess_image(BATCH).tensor.is_contiguous(memory_format=torch.channels_last)
    expected, found = plain(BATCH), last(BATCH)
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-5)
    with torch.no_grad():
        before, after = (model.eval()(BATCH)[0]["instances"] for model in (plain, last))
    torch.testing.assert_close(after.pred_boxes.tensor, before.pred_boxes.tensor, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "choice, device, last",
    [("auto", "cpu", True), ("auto", "cuda", False), ("always", "cuda", True), ("never", "cpu", False)],
)
def test_where_channels_come_last(choice: str, device: str, last: bool) -> None:
    cfg = tiny_cfg("MODEL.MEINST.CHANNELS_LAST", choice)
    cfg.MODEL.DEVICE = device
    assert channels_last_of(cfg) is last
