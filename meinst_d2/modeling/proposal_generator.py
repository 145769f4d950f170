"""MEInst as a Detectron2 proposal generator: features in, losses or instances out."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from meinst_d2.config import check_choices
from meinst_d2.encoding import MaskEncoder
from meinst_d2.fcos.assign import AssignmentRule, Positives, assign_batch
from meinst_d2.fcos.boxes import level_locations, ltrb_to_xyxy
from meinst_d2.modeling.build import (
    NOT_FITTED,
    build_mask_encoder,
    build_mask_loss,
    build_refinement,
    build_towers,
    reduce_mean,
)
from meinst_d2.modeling.criterion import MEInstCriterion, gather
from meinst_d2.modeling.head import HeadOutput, MEInstHead
from meinst_d2.modeling.inference import InferenceRule, detect
from meinst_d2.modeling.refinement import RefinementHead
from meinst_d2.modeling.targets import mask_templates
from meinst_d2.precision import without_autocast

GENERATOR_PREFIX = "proposal_generator."
PUBLISHED_NAMES = {
    "MEInst_head.ctrness.": "head.centerness.",
    "MEInst_head.": "head.",
    "mask_encoding.": "mask_encoder.",
}
"""Prefixes below ``proposal_generator.`` in published checkpoints, and ours; the first match counts."""


def rename_published_keys(state_dict: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    """A state-dict pre-hook of the module with this prefix: give published weights our names, in place."""
    for key in list(state_dict):
        for theirs, ours in PUBLISHED_NAMES.items():
            if key.startswith(prefix + theirs):
                state_dict[prefix + ours + key[len(prefix + theirs) :]] = state_dict.pop(key)
                break


def settle_names(state_dict: MutableMapping[str, Any]) -> None:
    """Give a detector's weights the names that this project's detectors have, in place.

    Published names become ours, the prefix of a distributed model goes, and so do the pixel statistics that older
    versions of Detectron2 stored: the config has them.
    """
    if state_dict and all(key.startswith("module.") for key in state_dict):
        for key in list(state_dict):
            state_dict[key.removeprefix("module.")] = state_dict.pop(key)
    rename_published_keys(state_dict, GENERATOR_PREFIX)
    for key in ("pixel_mean", "pixel_std"):
        state_dict.pop(key, None)


@PROPOSAL_GENERATOR_REGISTRY.register()
class MEInstFCOS(nn.Module):
    """Dense detection with mask coefficients (paper, section 3.1)."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        head: nn.Module,
        criterion: nn.Module,
        assignment_rule: AssignmentRule,
        inference_rule: InferenceRule,
        mask_encoder: MaskEncoder | None,
        refinement: RefinementHead | None = None,
    ) -> None:
        """
        Args:
            in_features: names of the feature maps, one per stride of ``assignment_rule``.
            head: feature maps -> :class:`~meinst_d2.modeling.head.HeadOutput`.
            criterion: its output and targets -> losses.
            assignment_rule: which location is assigned to which instance.
            inference_rule: how predictions become detections.
            mask_encoder: the dictionary, or None for plain FCOS.
            refinement: corrects the masks of detections.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.head = head
        self.criterion = criterion
        self.assignment_rule = assignment_rule
        self.inference_rule = inference_rule
        self.mask_encoder = mask_encoder
        self.refinement = refinement
        self._register_load_state_dict_pre_hook(rename_published_keys)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        check_choices(cfg)
        meinst = cfg.MODEL.MEINST
        missing = [name for name in meinst.IN_FEATURES if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.MEINST.IN_FEATURES asks for {', '.join(missing)}, the backbone {cfg.MODEL.BACKBONE.NAME} gives "
                f"{', '.join(input_shape)}: change IN_FEATURES or MODEL.MEINST.TOP_LEVELS"
            )
        shapes = [input_shape[name] for name in meinst.IN_FEATURES]
        mask_encoder = build_mask_encoder(cfg)
        return {
            "in_features": meinst.IN_FEATURES,
            "head": MEInstHead(
                in_channels=shapes[0].channels,
                num_levels=len(shapes),
                num_classes=meinst.NUM_CLASSES,
                mask_dim=mask_encoder and mask_encoder.dim,
                towers=build_towers(cfg),
                use_scale=meinst.USE_SCALE,
                prior_prob=meinst.PRIOR_PROB,
            ),
            "criterion": MEInstCriterion(
                focal_alpha=meinst.FOCAL_LOSS_ALPHA,
                focal_gamma=meinst.FOCAL_LOSS_GAMMA,
                box_loss_type=meinst.BOX_LOSS_TYPE,
                mask_loss=build_mask_loss(cfg),
                weights={
                    "cls": meinst.LOSS_WEIGHT_CLS,
                    "box": meinst.LOSS_WEIGHT_BOX,
                    "centerness": meinst.LOSS_WEIGHT_CENTERNESS,
                    "mask": meinst.LOSS_WEIGHT_MASK,
                },
                reduce_mean=reduce_mean,
            ),
            "assignment_rule": AssignmentRule(
                strides=tuple(shape.stride for shape in shapes),
                size_bounds=tuple(meinst.SIZES_OF_INTEREST),
                center_radius=meinst.CENTER_SAMPLING_RADIUS if meinst.CENTER_SAMPLING else None,
            ),
            "inference_rule": InferenceRule(
                score_thresh=meinst.SCORE_THRESH_TEST,
                pre_nms_topk=meinst.PRE_NMS_TOPK_TEST,
                nms_thresh=meinst.NMS_THRESH_TEST,
                max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
                thresh_with_centerness=meinst.THRESH_WITH_CENTERNESS,
            ),
            "mask_encoder": mask_encoder,
            "refinement": build_refinement(cfg, meinst.IN_FEATURES, input_shape),
        }

    def forward(
        self, images: ImageList, features: Mapping[str, Tensor], gt_instances: Sequence[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """
        Args:
            images: N images; their sizes before padding are used.
            features: feature maps by name.
            gt_instances: of each image, needed in training: ``gt_boxes``, ``gt_classes`` and masks (see
                :func:`~meinst_d2.modeling.build.mask_templates`). Best on the CPU, where targets are computed
                without making the GPU wait.

        Returns:
            In training no instances and the losses; in evaluation the instances of
            :func:`~meinst_d2.modeling.inference.detect` and no losses.
        """
        if self.mask_encoder is not None and not self.mask_encoder.is_fitted:
            raise RuntimeError(NOT_FITTED)
        output = self.head([features[name] for name in self.in_features])
        if self.training:
            if gt_instances is None:
                raise ValueError("training needs the ground truth: every input must have 'instances'")
            with without_autocast(images.tensor.device):
                losses, positives = self.losses(output, gt_instances)
            if self.refinement is not None:
                losses |= self.refinement_loss(features, output, positives, gt_instances)
            return [], losses
        strides = self.assignment_rule.strides
        locations = level_locations(output.level_shapes, strides, images.tensor.device)
        with without_autocast(images.tensor.device):
            detections = detect(output, locations, strides, images.image_sizes, self.inference_rule, self.mask_encoder)
        if self.refinement is not None:
            detections = self.refinement.refine(features, detections)
        return detections, {}

    def count_positives(self, image_sizes: Sequence[tuple[int, int]], gt_instances: Sequence[Instances]) -> Tensor:
        """How many positive locations N images have, and the sum of their centerness: (2,), on the CPU.

        Args:
            image_sizes: (height, width) of each image; no location outside is positive.
            gt_instances: of each image.
        """
        strides = self.assignment_rule.strides
        counts = torch.zeros(2)
        for (height, width), instances in zip(image_sizes, gt_instances, strict=True):
            shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]
            boxes = instances.gt_boxes.tensor.cpu()
            positives = assign_batch([boxes], shapes, self.assignment_rule)
            counts += torch.stack((torch.tensor(float(len(positives))), positives.centerness.sum()))
        return counts

    def losses(self, output: HeadOutput, gt_instances: Sequence[Instances]) -> tuple[dict[str, Tensor], Positives]:
        """Losses of predictions for N images against their instances, and the locations that learn those."""
        device = output.cls_logits[0].device
        boxes = [instances.gt_boxes.tensor.cpu() for instances in gt_instances]
        positives = assign_batch(boxes, output.level_shapes, self.assignment_rule)
        classes = torch.cat([instances.gt_classes for instances in gt_instances]).to(device, non_blocking=True)
        masks = None
        if self.mask_encoder is not None:
            masks = mask_templates(gt_instances, self.mask_encoder.mask_size).to(device, non_blocking=True)
        positives = positives.to(device)
        return self.criterion(output, positives, classes, masks, self.mask_encoder), positives

    def refinement_loss(
        self,
        features: Mapping[str, Tensor],
        output: HeadOutput,
        positives: Positives,
        gt_instances: Sequence[Instances],
    ) -> dict[str, Tensor]:
        """The losses of what corrects masks, in the boxes that the positive locations predict."""
        shapes, strides, at = output.level_shapes, self.assignment_rule.strides, positives.location_idx
        locations = level_locations(shapes, strides, output.cls_logits[0].device)
        stride = torch.cat([x.new_full((len(x), 1), s) for x, s in zip(locations, strides, strict=True)])[at]
        ltrb = gather(output.box_ltrb, positives.image_idx, at).detach() * stride
        return self.refinement.loss(
            features,
            ltrb_to_xyxy(torch.cat(locations)[at], ltrb),
            gather(output.mask_coeffs, positives.image_idx, at).detach(),
            positives.image_idx,
            positives.gt_idx,
            gt_instances,
            self.mask_encoder,
            self.criterion.mean_counts(positives.centerness)[0],
        )
