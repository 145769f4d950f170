"""The whole model on the images that break others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.modeling import build_model
from detectron2.structures import BoxMode

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
        assert losses["loss_cls"] > 0
        assert losses["loss_box"] == losses["loss_centerness"] == losses["loss_mask"] == 0


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
    model = build_model(tiny_cfg("MODEL.MEINST.COMPONENTS", str(path)))
    assert model.proposal_generator.mask_encoder.is_fitted


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
