"""The anchor-based form: Detectron2's RetinaNet where there are no masks, and masks of the right anchors."""

from typing import Any

import pytest
import torch
from detectron2.modeling import RetinaNet, build_model
from detectron2.structures import pairwise_iou
from detectron2.utils.events import EventStorage

from meinst_d2.modeling.retinanet import MEInstRetinaNet
from tests.models import fit_to_blobs, image_with, tiny_cfg

RETINANET = (
    *("MODEL.META_ARCHITECTURE", "MEInstRetinaNet"),
    *("MODEL.RETINANET.NUM_CLASSES", 6),
    *("MODEL.RETINANET.IN_FEATURES", ["p3", "p4", "p5"]),
    *("MODEL.RETINANET.NUM_CONVS", 1),
    *("MODEL.RETINANET.PRIOR_PROB", 0.3),
    *("MODEL.ANCHOR_GENERATOR.SIZES", [[16], [32], [64]]),
)


def model(*overrides: Any) -> MEInstRetinaNet:
    torch.manual_seed(0)
    built = build_model(tiny_cfg(*RETINANET, *overrides))
    if built.mask_encoder is not None:
        fit_to_blobs(built.mask_encoder)
    return built


def plain_twin(ours: MEInstRetinaNet) -> RetinaNet:
    """Detectron2's own, with the same weights."""
    theirs = build_model(tiny_cfg(*RETINANET, "MODEL.META_ARCHITECTURE", "RetinaNet"))
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not result.missing_keys and all("mask" in key for key in result.unexpected_keys)
    return theirs


BATCH = [image_with([[10, 8, 40, 44], [50, 20, 90, 60]], classes=[3, 5]), image_with([])]


def losses(net: torch.nn.Module, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    net.train()
    with EventStorage():
        return net(batch)


def test_classes_and_boxes_are_trained_as_detectron2s() -> None:
    ours = model()
    found, expected = losses(ours, BATCH), losses(plain_twin(ours), BATCH)
    assert set(found) == {*expected, "loss_mask"}
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6)


def test_detections_are_detectron2s() -> None:
    ours = model("MODEL.MEINST.CHANNELS_LAST", "never").eval()  # as theirs: bit for bit
    theirs = plain_twin(ours).eval()
    with torch.no_grad():
        for found, expected in zip(ours(BATCH), theirs(BATCH), strict=True):
            found, expected = found["instances"], expected["instances"]
            assert len(found) > 5 and torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(found.scores, expected.scores) and found.pred_masks.shape == (len(found), 64, 96)


def test_without_masks_it_is_plain_retinanet() -> None:
    ours = model("MODEL.MASK_ON", False)
    assert not any("mask" in key for key in ours.state_dict())
    assert set(losses(ours, BATCH)) == {"loss_cls", "loss_box_reg"}
    with torch.no_grad():
        assert not ours.eval()(BATCH)[0]["instances"].has("pred_masks")


def test_every_detection_has_the_mask_of_its_own_anchor() -> None:
    ours = model().eval()
    torch.nn.init.normal_(ours.head.mask_pred.weight)
    images = ours.preprocess_image(BATCH)
    with torch.no_grad():
        features = ours.backbone(images.tensor)
        levels = [features[name] for name in ours.head_in_features]
        logits, deltas, coeffs = ours.head(levels)
        anchors = torch.cat([level.tensor for level in ours.anchor_generator(levels)])
        found = ours.forward_inference(images, features, (logits, deltas, coeffs))[0]
    assert not found.has("anchor_idx")
    num_anchors = ours.anchor_generator.num_cell_anchors[0]

    def flat(maps: list[torch.Tensor], size: int) -> torch.Tensor:  # (R, size), cell by cell, anchor by anchor
        return torch.cat([x[0].reshape(num_anchors, size, -1).permute(2, 0, 1).reshape(-1, size) for x in maps])

    boxes = ours.box2box_transform.apply_deltas(flat(deltas, 4), anchors)
    for i in range(len(found)):
        anchor = (boxes - found.pred_boxes.tensor[i]).abs().sum(1).argmin()
        torch.testing.assert_close(found.pred_masks[i], ours.mask_encoder.decode(flat(coeffs, 8)[anchor][None]))


def test_positive_anchors_learn_the_mask_of_the_object_they_overlap() -> None:
    ours = model()
    instances = [x["instances"] for x in [BATCH[1], BATCH[0], BATCH[0]]]
    anchors = ours.anchor_generator([torch.zeros(3, 32, 64 // s, 96 // s) for s in (8, 16, 32)])
    labels, _, gt_idx = ours._label_anchors(anchors, instances)
    plain_labels, plain_boxes = ours.label_anchors(anchors, instances)
    assert all(torch.equal(a, b) for a, b in zip(labels, plain_labels, strict=True))
    assert (gt_idx[0] < 0).all()
    boxes = torch.cat([x.gt_boxes.tensor for x in instances])
    for image in (1, 2):
        positive = gt_idx[image] >= 0
        assert positive.any() and gt_idx[image][positive].min() >= 2 * (image - 1)
        assert torch.equal(boxes[gt_idx[image][positive]], plain_boxes[image][positive])
        overlap = pairwise_iou(instances[image].gt_boxes, type(anchors[0]).cat(anchors))[:, positive]
        assert torch.equal(overlap.argmax(0) + 2 * (image - 1), gt_idx[image][positive])


@pytest.mark.parametrize("empty_images", [1, 2])
def test_a_batch_without_objects_costs_no_mask(empty_images: int) -> None:
    ours = model()
    found = losses(ours, [image_with([])] * empty_images)
    assert found["loss_mask"].item() == 0
    sum(found.values()).backward()
    assert ours.head.mask_pred.weight.grad is not None and not ours.head.mask_pred.weight.grad.any()


@pytest.mark.parametrize(
    "overrides",
    [
        ("MODEL.MEINST.MASK_REPRESENTATION", "implicit"),
        ("MODEL.MEINST.MASK_REPRESENTATION", "none"),
        ("MODEL.MEINST.DEFORM_CONV", "last", "MODEL.MEINST.MASK_PREDICTOR", "large_kernel"),
    ],
    ids=["implicit", "none", "deformable and large kernel"],
)
def test_the_options_of_the_mask_branch_hold_here_too(overrides: tuple[Any, ...]) -> None:
    if "none" in overrides:
        overrides = (*overrides, "MODEL.MEINST.MASK_SIZE", 6)
        batch = [image_with([[10, 8, 40, 44]], mask_size=6)]
        torch.manual_seed(0)
        ours = build_model(tiny_cfg(*RETINANET, *overrides))
    else:
        batch, ours = BATCH, model(*overrides)
    found = losses(ours, batch)
    assert found["loss_mask"] > 0
    sum(found.values()).backward()
    assert all(p.grad is not None for p in ours.head.parameters())
    with torch.no_grad():
        assert ours.eval()(batch)[0]["instances"].pred_masks.dtype == torch.bool


def test_without_components_it_stops() -> None:
    with pytest.raises(RuntimeError, match="no mask components"):
        build_model(tiny_cfg(*RETINANET))(BATCH)


def test_two_numbers_of_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match="MODEL.RETINANET.NUM_CLASSES = 7 and MODEL.MEINST.NUM_CLASSES = 6"):
        build_model(tiny_cfg(*RETINANET, "MODEL.RETINANET.NUM_CLASSES", 7))


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    batch = [image_with([[10, 8, 40, 44], [50, 20, 90, 60]], classes=[3, 5])]
    plain, last = (model("MODEL.MEINST.CHANNELS_LAST", choice).eval() for choice in ("never", "always"))
    assert last.preprocess_image(batch).tensor.is_contiguous(memory_format=torch.channels_last)
    assert last.head.mask_pred.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        before, after = (found(batch)[0]["instances"] for found in (plain, last))
    torch.testing.assert_close(after.pred_boxes.tensor, before.pred_boxes.tensor, rtol=0, atol=1e-3)
    torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=1e-5)
