from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from meinst_d2.modeling.inference import InferenceRule
from meinst_d2.modeling.test_time_augmentation import DetectorWithTTA, merge
from tests.models import tiny_cfg, tiny_model

THRESHOLD = ("MODEL.MEINST.SCORE_THRESH_TEST", 0.0099)  # untrained scores are all near 0.01


def detections(boxes: list[list[float]], scores: list[float], classes: list[int], values: list[float]) -> Instances:
    """With masks that are constant, each in its box."""
    found = Instances((20, 20))
    found.pred_boxes, found.pred_mask_boxes = Boxes(torch.tensor(boxes)), Boxes(torch.tensor(boxes))
    found.scores, found.pred_classes = torch.tensor(scores), torch.tensor(classes)
    found.pred_masks = torch.tensor(values)[:, None, None, None].expand(-1, 1, 4, 4).clone()
    return found


def test_overlapping_detections_of_a_class_become_their_mean() -> None:
    boxes = [[0.0, 0, 10, 10], [2.0, 0, 10, 10], [0.0, 0, 10, 10], [12.0, 12, 18, 18]]
    found = detections(boxes, [0.6, 0.3, 0.5, 0.4], [1, 1, 0, 1], [1.0, 0.4, 0.2, 0.9])
    result = merge(found, InferenceRule(nms_thresh=0.6))  # the second has an IoU of 0.8 with the first
    assert result.scores.tolist() == pytest.approx([0.6, 0.5, 0.4]) and result.pred_classes.tolist() == [1, 0, 1]
    expected = [[(0.6 * 0 + 0.3 * 2) / 0.9, 0, 10, 10], boxes[2], boxes[3]]
    assert torch.allclose(result.pred_boxes.tensor, torch.tensor(expected))
    assert result.pred_mask_boxes.tensor.tolist() == [boxes[0], boxes[2], boxes[3]]
    first, second, third = result.pred_masks[:, 0]
    # Right of its box's edge the second mask is there, in the outermost cells half of it; left of it, it is not.
    assert torch.allclose(first[:, 2:], torch.tensor((0.6 * 1.0 + 0.3 * 0.4) / 0.9))
    assert torch.allclose(first[1:3, 0], torch.tensor(0.6 / 0.9), atol=0.1) and (first[:, 0] < first[:, 2]).all()
    assert torch.allclose(second, torch.tensor(0.2)) and torch.allclose(third, torch.tensor(0.9))


def test_nothing_and_no_suppression() -> None:
    none = detections([[0.0, 0, 1, 1]], [0.5], [0], [1.0])[:0]
    assert len(merge(none, InferenceRule())) == 0
    twice = Instances.cat([detections([[0.0, 0, 10, 10]], [0.5], [0], [1.0])] * 2)
    assert len(merge(twice, InferenceRule(nms_thresh=0))) == 2 and len(merge(twice, InferenceRule())) == 1


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return (torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255).byte()


def with_tta(model: torch.nn.Module, *overrides: Any) -> DetectorWithTTA:
    return DetectorWithTTA(tiny_cfg(*THRESHOLD, *overrides), model).eval()


@pytest.mark.parametrize("masks", [True, False])
def test_one_view_is_the_detector(image: torch.Tensor, masks: bool) -> None:
    model = tiny_model(*THRESHOLD).eval() if masks else tiny_model(*THRESHOLD, "MODEL.MASK_ON", False).eval()
    given = [{"image": image, "height": 128, "width": 192}]
    one = with_tta(model, "TEST.AUG.MIN_SIZES", (64,), "TEST.AUG.FLIP", False)(given)[0]["instances"]
    plain = model(given)[0]["instances"]
    assert len(plain) > 20 and len(one) == len(plain) and one.image_size == plain.image_size
    assert torch.allclose(one.pred_boxes.tensor, plain.pred_boxes.tensor, atol=1e-3)
    assert torch.equal(one.scores, plain.scores) and torch.equal(one.pred_classes, plain.pred_classes)
    assert one.has("pred_masks") == masks
    if masks:
        assert (one.pred_masks != plain.pred_masks).float().mean() < 1e-3
    assert model.mask_output == "bitmask"


def test_the_mirror_image_has_the_mirrored_detections(image: torch.Tensor) -> None:
    model = tiny_model(*THRESHOLD).eval()
    both = with_tta(model, "TEST.AUG.MIN_SIZES", (64, 96))
    first, second = (both([{"image": x}])[0]["instances"] for x in (image, image.flip(2)))
    assert len(first) == len(second) > 20
    mirrored = first.pred_boxes.tensor[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([96, 0, 96, 0])
    assert torch.allclose(mirrored, second.pred_boxes.tensor, atol=1e-2)
    assert torch.allclose(first.scores, second.scores)
    assert (first.pred_masks.flip(2) != second.pred_masks).float().mean() < 1e-3
