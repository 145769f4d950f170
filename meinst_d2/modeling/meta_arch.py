"""The detector: backbone and proposal generator, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, ProposalNetwork, build_backbone, build_proposal_generator
from detectron2.structures import ImageList
from torch import Tensor

from meinst_d2.config import channels_last_of, precision_of
from meinst_d2.modeling.backbones import complete_pyramid
from meinst_d2.modeling.inference import MaskOutput, PasteBox, postprocess
from meinst_d2.precision import Precision, autocast


@META_ARCH_REGISTRY.register()
class MEInstDetector(ProposalNetwork):
    """A one-stage instance segmentation model. Inputs and outputs are those of Detectron2's GeneralizedRCNN."""

    @configurable
    def __init__(
        self,
        *,
        mask_paste_box: PasteBox = "predicted",
        mask_output: MaskOutput = "bitmask",
        precision: Precision = "float32",
        channels_last: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            mask_paste_box, mask_output: see :func:`~meinst_d2.modeling.inference.postprocess`.
            precision: "float32", "float16" or "bfloat16", what convolutions compute in.
            channels_last: keep images and feature maps with channels last in memory.
            kwargs: ``backbone``, ``proposal_generator``, ``pixel_mean`` and ``pixel_std`` of ProposalNetwork.
        """
        super().__init__(**kwargs)
        self.mask_paste_box: PasteBox = mask_paste_box
        self.mask_output: MaskOutput = mask_output
        self.precision: Precision = precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        meinst = cfg.MODEL.MEINST
        backbone = complete_pyramid(build_backbone(cfg), meinst.IN_FEATURES, meinst.TOP_LEVELS)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "mask_paste_box": meinst.MASK_PASTE_BOX,
            "mask_output": meinst.MASK_OUTPUT,
            "precision": precision_of(cfg),
            "channels_last": channels_last_of(cfg),
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: one dict per image: ``image`` (3, H, W); in training ``instances``; in evaluation
                optionally ``height`` and ``width`` of the output.

        Returns:
            In training the losses by name; in evaluation one ``{"instances": Instances}`` per image.
        """
        image_list = self.preprocess_image(batched_inputs)
        with autocast(self.device, self.precision):
            features = self.backbone(image_list.tensor)
            if self.training:
                return self.proposal_generator(image_list, features, [x["instances"] for x in batched_inputs])[1]
            detections, _ = self.proposal_generator(image_list, features)
        return [
            {"instances": postprocess(r, x.get("height", h), x.get("width", w), self.mask_paste_box, self.mask_output)}
            for r, x, (h, w) in zip(detections, batched_inputs, image_list.image_sizes, strict=True)
        ]

    @contextmanager
    def as_parts_of(self, batched_inputs: list[dict[str, Any]], num_parts: int) -> Iterator[None]:
        """Within the block, the losses of the parts of a batch are normalised so that their mean is that of the whole.

        Args:
            batched_inputs: the whole batch of this process.
            num_parts: how many parts it is given in.
        """
        criterion = self.proposal_generator.criterion
        sizes = [tuple(x["image"].shape[-2:]) for x in batched_inputs]
        counts = self.proposal_generator.count_positives(sizes, [x["instances"] for x in batched_inputs])
        counts = criterion.reduce_mean(counts.to(self.device)) / num_parts
        with criterion.normalized_by(counts):
            yield

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Move images to the device, normalise them and pad them to one size."""
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        image_list = ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        image_list.tensor = image_list.tensor.to(memory_format=self.memory_format)
        return image_list
