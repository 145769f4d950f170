"""Detectron2's FCOS as the oracle of assignment, centerness and box decoding."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, Instances

from meinst_d2.fcos.assign import AssignmentRule, assign_batch
from meinst_d2.fcos.boxes import level_locations, ltrb_to_xyxy

STRIDES = (8, 16, 32, 64, 128)
SHAPES = [(40, 48), (20, 24), (10, 12), (5, 6), (3, 3)]


class Features(Backbone):
    """Only the shapes that FCOS asks for."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i + 3}": ShapeSpec(channels=1, stride=s) for i, s in enumerate(STRIDES)}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError


def detectron2_fcos() -> FCOS:
    options = {"head_in_features": ["p3", "p4", "p5", "p6", "p7"], "pixel_mean": [0.0], "pixel_std": [1.0]}
    model = FCOS(backbone=Features(), head=torch.nn.Identity(), num_classes=4, **options)
    # Detectron2 puts the first location at 0, FCOS and MEInst at half a stride.
    model.anchor_generator = DefaultAnchorGenerator(
        sizes=[[s] for s in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.5
    )
    return model


def random_instances(seed: int) -> Instances:
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(9, 2, generator=generator) * torch.tensor([384.0, 320.0])
    half = torch.rand(9, 2, generator=generator) ** 2 * 160 + 4
    instances = Instances((320, 384))
    instances.gt_boxes = Boxes(torch.cat((center - half, center + half), 1))
    instances.gt_boxes.clip((320, 384))
    instances.gt_classes = torch.randint(0, 4, (9,), generator=generator)
    return instances


def test_labels_boxes_and_centerness() -> None:
    model, rule = detectron2_fcos(), AssignmentRule(STRIDES, (64, 128, 256, 512))
    anchors = model.anchor_generator([torch.zeros(1, 1, *shape) for shape in SHAPES])
    total = 0
    for seed in range(30):
        instances = random_instances(seed)
        labels, boxes = model.label_anchors(anchors, [instances])
        positives = assign_batch([instances.gt_boxes.tensor], SHAPES, rule)
        assert torch.equal(positives.location_idx, (labels[0] != 4).nonzero()[:, 0])
        assert torch.equal(instances.gt_classes[positives.gt_idx], labels[0][positives.location_idx])
        assert torch.equal(instances.gt_boxes.tensor[positives.gt_idx], boxes[0][positives.location_idx])
        centerness = model.compute_ctrness_targets(anchors, boxes)[0]
        torch.testing.assert_close(positives.centerness, centerness[positives.location_idx])
        total += len(positives)
    assert total > 500


def test_decoded_boxes() -> None:
    locations = torch.cat(level_locations(SHAPES, STRIDES))
    anchors = Boxes.cat(detectron2_fcos().anchor_generator([torch.zeros(1, 1, *shape) for shape in SHAPES])).tensor
    strides = torch.cat([torch.full((h * w, 1), s) for (h, w), s in zip(SHAPES, STRIDES, strict=True)])
    ltrb = torch.rand(len(locations), 4) * 9
    theirs = Box2BoxTransformLinear(normalize_by_size=True).apply_deltas(ltrb, anchors)
    torch.testing.assert_close(ltrb_to_xyxy(locations, ltrb * strides), theirs)
