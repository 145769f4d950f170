"""The detector: backbone and proposal generator, and nothing else."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, ProposalNetwork, build_backbone, build_proposal_generator
from detectron2.structures import ImageList
from torch import Tensor

from meinst_d2.modeling.backbone import complete_pyramid
from meinst_d2.modeling.inference import PasteBox, postprocess


@META_ARCH_REGISTRY.register()
class MEInstDetector(ProposalNetwork):
    """A one-stage instance segmentation model. Inputs and outputs are those of Detectron2's GeneralizedRCNN."""

    @configurable
    def __init__(self, *, mask_paste_box: PasteBox = "predicted", **kwargs: Any) -> None:
        """
        Args:
            mask_paste_box: see :func:`~meinst_d2.modeling.inference.postprocess`.
            kwargs: ``backbone``, ``proposal_generator``, ``pixel_mean`` and ``pixel_std`` of ProposalNetwork.
        """
        super().__init__(**kwargs)
        self.mask_paste_box = mask_paste_box

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
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: one dict per image: ``image`` (3, H, W); in training ``instances``; in evaluation
                optionally ``height`` and ``width`` of the output.

        Returns:
            In training the losses by name; in evaluation one ``{"instances": Instances}`` per image.
        """
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        image_list = ImageList.from_tensors(
            [(x - self.pixel_mean) / self.pixel_std for x in images],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        features = self.backbone(image_list.tensor)
        if self.training:
            return self.proposal_generator(image_list, features, [x["instances"] for x in batched_inputs])[1]
        detections, _ = self.proposal_generator(image_list, features)
        return [
            {"instances": postprocess(r, x.get("height", h), x.get("width", w), self.mask_paste_box)}
            for r, x, (h, w) in zip(detections, batched_inputs, image_list.image_sizes, strict=True)
        ]
