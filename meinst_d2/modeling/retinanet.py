"""The mask branch on an anchor-based detector: Detectron2's RetinaNet with one more output.

Symbols: N images, A anchors per cell, R anchors of an image over all levels, K classes, D coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from meinst_d2.config import channels_last_of, check_choices, precision_of
from meinst_d2.encoding import MaskEncoder
from meinst_d2.modeling.build import (
    NOT_FITTED,
    build_mask_encoder,
    build_mask_loss,
    build_refinement,
    build_towers,
    reduce_mean,
)
from meinst_d2.modeling.head import TowerConfig, reset_predictor
from meinst_d2.modeling.inference import MaskOutput, PasteBox, postprocess
from meinst_d2.modeling.mask_loss import MaskLoss, MaskTargets
from meinst_d2.modeling.refinement import RefinementHead
from meinst_d2.modeling.targets import mask_templates
from meinst_d2.precision import Precision, autocast


class MEInstRetinaNetHead(RetinaNetHead):
    """RetinaNet's head with a third subnet, which predicts the coefficients of every anchor's mask."""

    @configurable
    def __init__(self, *, towers: TowerConfig, mask_dim: int, num_anchors: int, **kwargs: Any) -> None:
        """
        Args:
            towers: what the mask tower and its predictor are made of.
            mask_dim: D.
            num_anchors: A.
            kwargs: of Detectron2's RetinaNetHead.
        """
        super().__init__(num_anchors=num_anchors, **kwargs)
        channels = kwargs["input_shape"][0].channels
        self.mask_tower, self.mask_pred = towers.build_mask_branch(channels, num_anchors * mask_dim)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec], mask_dim: int) -> dict[str, Any]:
        return {**super().from_config(cfg, input_shape), "towers": build_towers(cfg), "mask_dim": mask_dim}

    def reset_mask_predictor(self) -> None:
        """Re-initialize the mask predictor: its outputs mean nothing under another dictionary."""
        reset_predictor(self.mask_pred)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Class logits, box deltas and mask coefficients of each level, float32 (N, A * K | 4 | D, H, W)."""
        logits, deltas = super().forward(features)
        coeffs = [self.mask_pred(self.mask_tower(feature)) for feature in features]
        return tuple([x.float() for x in per_level] for per_level in (logits, deltas, coeffs))


@META_ARCH_REGISTRY.register()
class MEInstRetinaNet(RetinaNet):
    """RetinaNet that predicts a mask's coefficients with every anchor. Keys: MODEL.RETINANET and MODEL.MEINST."""

    @configurable
    def __init__(
        self,
        *,
        mask_encoder: MaskEncoder | None,
        mask_loss: MaskLoss,
        mask_weight: float = 1.0,
        refinement: RefinementHead | None = None,
        mask_paste_box: PasteBox = "predicted",
        mask_output: MaskOutput = "bitmask",
        precision: Precision = "float32",
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            mask_encoder: the dictionary, or None for plain RetinaNet.
            mask_loss: of the coefficients.
            mask_weight: its factor.
            refinement: corrects the masks of detections.
            mask_paste_box, mask_output: see :func:`~meinst_d2.modeling.inference.postprocess`.
            precision: "float32", "float16" or "bfloat16", what convolutions compute in.
            channels_last: keep images and feature maps with channels last in memory.
            kwargs: of Detectron2's RetinaNet.
        """
        super().__init__(**kwargs)
        self.mask_encoder = mask_encoder
        self.mask_loss = mask_loss
        self.mask_weight = mask_weight
        self.refinement = refinement
        self.mask_paste_box: PasteBox = mask_paste_box
        self.mask_output: MaskOutput = mask_output
        self.precision: Precision = precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_choices(cfg)
        meinst = cfg.MODEL.MEINST
        if meinst.NUM_CLASSES != cfg.MODEL.RETINANET.NUM_CLASSES:
            raise ValueError(
                f"MODEL.RETINANET.NUM_CLASSES = {cfg.MODEL.RETINANET.NUM_CLASSES} and MODEL.MEINST.NUM_CLASSES = "
                f"{meinst.NUM_CLASSES} must be the same"
            )
        parts = super().from_config(cfg)
        mask_encoder = build_mask_encoder(cfg)
        input_shape = parts["backbone"].output_shape()
        shapes = [input_shape[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
        if mask_encoder is not None:
            parts["head"] = MEInstRetinaNetHead(cfg, shapes, mask_encoder.dim)
        return {
            **parts,
            "mask_encoder": mask_encoder,
            "mask_loss": build_mask_loss(cfg),
            "mask_weight": meinst.LOSS_WEIGHT_MASK,
            "refinement": build_refinement(cfg, cfg.MODEL.RETINANET.IN_FEATURES, input_shape),
            "mask_paste_box": meinst.MASK_PASTE_BOX,
            "mask_output": meinst.MASK_OUTPUT,
            "precision": precision_of(cfg),
            "channels_last": channels_last_of(cfg),
        }

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Like Detectron2's, with the pixels in this model's order."""
        images = super().preprocess_image(batched_inputs)
        images.tensor = images.tensor.to(memory_format=self.memory_format)
        return images

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Like :class:`~meinst_d2.modeling.meta_arch.MEInstDetector`'s."""
        if self.mask_encoder is not None and not self.mask_encoder.is_fitted:
            raise RuntimeError(NOT_FITTED)
        with autocast(self.device, self.precision):
            images = self.preprocess_image(batched_inputs)
            features = self.backbone(images.tensor)
            predictions = self.head(self._levels(features))
            if self.training:
                gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
                return self.forward_training(images, features, predictions, gt_instances)
            detections = self.forward_inference(images, features, predictions)
        return [
            {"instances": postprocess(r, x.get("height", h), x.get("width", w), self.mask_paste_box, self.mask_output)}
            for r, x, (h, w) in zip(detections, batched_inputs, images.image_sizes, strict=True)
        ]

    def forward_training(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        predictions: Sequence[list[Tensor]],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """Detectron2's losses of classes and boxes, and that of masks over the positive anchors."""
        logits, deltas = self._transpose_dense_predictions(predictions[:2], [self.num_classes, 4])
        anchors = self.anchor_generator(self._levels(features))
        labels, gt_boxes, gt_idx = self._label_anchors(anchors, gt_instances)
        # The compiled focal loss rounds otherwise from its third call on, and a resumed run starts counting again.
        with torch.jit.optimized_execution(False):
            losses = self.losses(anchors, logits, labels, deltas, gt_boxes)
        if self.mask_encoder is not None:
            coeffs = self._coefficients(predictions[2])[gt_idx >= 0]  # (P, D)
            targets = MaskTargets(
                mask_templates(gt_instances, self.mask_encoder.mask_size).to(coeffs.device),
                torch.cat([instances.gt_classes for instances in gt_instances]),
                gt_idx[gt_idx >= 0],
            )
            weight = torch.ones_like(coeffs[:, 0])
            num_positives = reduce_mean(weight.sum())
            mask_loss = self.mask_loss(coeffs, targets, self.mask_encoder, weight, num_positives)
            losses["loss_mask"] = self.mask_weight * mask_loss
            if self.refinement is not None:
                image_idx, anchor_idx = (gt_idx >= 0).nonzero(as_tuple=True)
                found = self.box2box_transform.apply_deltas(
                    torch.cat(deltas, dim=1)[gt_idx >= 0], Boxes.cat(anchors).tensor[anchor_idx]
                )
                losses |= self.refinement.loss(
                    features, found, coeffs, image_idx, targets.gt_idx, gt_instances, self.mask_encoder, num_positives
                )
        return losses

    @torch.no_grad()
    def _label_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """What :meth:`label_anchors` gives, and (N, R) the instance of the batch of positive anchors, else negative.

        Matching is done once: it labels anchors with numbers of instances, which say everything else.
        """
        numbered, first = [], self.num_classes + 1  # numbers above those that mean background or ignored
        for instances in gt_instances:
            number = torch.arange(first, first + len(instances), device=self.device)
            numbered.append(Instances(instances.image_size, gt_boxes=instances.gt_boxes, gt_classes=number))
            first += len(instances)
        labels, gt_boxes = self.label_anchors(anchors, numbered)
        gt_idx = torch.stack(labels) - (self.num_classes + 1)
        classes = torch.cat([instances.gt_classes for instances in gt_instances])
        classes = torch.cat((classes, classes.new_zeros(1)))  # something to index where there are no instances
        labels = [
            torch.where(idx >= 0, classes[idx.clamp(min=0)], label) for idx, label in zip(gt_idx, labels, strict=True)
        ]
        return labels, gt_boxes, gt_idx

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        """Like Detectron2's, of the mean over the processes, which one checkpoint can hold."""
        mean = reduce_mean(torch.tensor(float(value), device=self.device))
        return float(super()._ema_update(name, mean.item(), initial_value, momentum))

    def _levels(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        return [features[name] for name in self.head_in_features]

    def _coefficients(self, mask_coeffs: Sequence[Tensor]) -> Tensor:
        """L tensors (N, A * D, H, W) -> (N, R, D)."""
        return torch.cat([permute_to_N_HWA_K(x, self.mask_encoder.dim) for x in mask_coeffs], dim=1)

    def forward_inference(
        self, images: ImageList, features: Mapping[str, Tensor], predictions: Sequence[list[Tensor]]
    ) -> list[Instances]:
        """Detectron2's detections, with ``pred_masks`` (n, 1, S, S), probabilities relative to the box."""
        results = super().forward_inference(images, self._levels(features), predictions[:2])
        if self.mask_encoder is not None:
            for coeffs, detections in zip(self._coefficients(predictions[2]), results, strict=True):
                kept = coeffs[detections.anchor_idx]
                detections.pred_masks = self.mask_encoder.decode(kept, detections.pred_classes)[:, None]
        for detections in results:
            detections.remove("anchor_idx")
        if self.refinement is not None:
            results = self.refinement.refine(features, results)
        return results

    def _decode_multi_level_predictions(
        self, anchors: list[Boxes], pred_scores: list[Tensor], pred_deltas: list[Tensor], *args: Any
    ) -> Instances:
        """Detectron2's candidates of all levels, with ``anchor_idx``, their number over all levels."""
        levels, first = [], 0
        for level, scores, deltas in zip(anchors, pred_scores, pred_deltas, strict=True):  # (R of a level, K)
            levels.append(self._decode_per_level_predictions(level, scores, deltas, *args))
            above = scores > args[0]
            best = scores[above].topk(min(args[1], int(above.sum()))).indices  # in Detectron2's order
            levels[-1].anchor_idx = first + above.nonzero()[best, 0]
            first += len(level)
        return Instances.cat(levels)


class LossNormalizer:
    """The running mean of positive anchors that RetinaNet divides losses by, for checkpoints: it is not a buffer."""

    def __init__(self, model: MEInstRetinaNet) -> None:
        self.model = model

    def state_dict(self) -> dict[str, float]:
        """``value``; nothing before the first iteration."""
        value = getattr(self.model, "loss_normalizer", None)
        return {} if value is None else {"value": float(value)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        if state:
            self.model.loss_normalizer = state["value"]


def further_state(model: nn.Module) -> dict[str, LossNormalizer]:
    """What training such a model changes besides its weights, for a checkpointer."""
    return {"loss_normalizer": LossNormalizer(model)} if isinstance(model, MEInstRetinaNet) else {}
