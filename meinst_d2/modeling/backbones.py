"""ResNet + FPN whose extra levels start from P5, as FCOS has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from fvcore.nn.weight_init import c2_xavier_fill
from torch import Tensor, nn

BASIC_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks per stage of the ResNets without bottlenecks."""


class LastLevelP6(nn.Module):
    """One more level, p6, a strided 3 x 3 convolution of p5."""

    num_levels = 1
    in_feature = "p5"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        c2_xavier_fill(self.p6)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.p6(x)]


def build_top_block(channels: int, num_levels: int) -> nn.Module | None:
    """The module that adds ``num_levels`` levels above p5.

    Raises:
        ValueError: ``num_levels`` is not 0, 1 or 2.
    """
    if num_levels not in (0, 1, 2):
        raise ValueError(f"MODEL.MEINST.TOP_LEVELS = {num_levels} must be 0, 1 (p6) or 2 (p6 and p7)")
    if num_levels == 2:
        return LastLevelP6P7(channels, channels, in_feature="p5")
    return LastLevelP6(channels) if num_levels else None


def build_bottom_up(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Detectron2's ResNet, and also ResNet-18 and -34 of any width, for small models trained from scratch."""
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in BASIC_BLOCKS or resnets.RES2_OUT_CHANNELS == 64:
        return build_resnet_backbone(cfg, input_shape)
    stages, channels = [], resnets.STEM_OUT_CHANNELS
    for i, num_blocks in enumerate(BASIC_BLOCKS[resnets.DEPTH]):
        sizes = {"in_channels": channels, "out_channels": resnets.RES2_OUT_CHANNELS * 2**i}
        strides = [1 if i == 0 else 2] + [1] * (num_blocks - 1)
        stages.append(ResNet.make_stage(BasicBlock, num_blocks, **sizes, stride_per_block=strides, norm=resnets.NORM))
        channels = sizes["out_channels"]
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


class DetailFPN(FPN):
    """FPN that also gives a map of the network below it, which Detectron2's keeps to itself."""

    def __init__(self, detail_feature: str, bottom_up: Backbone, *args: Any, **kwargs: Any) -> None:
        """
        Args:
            detail_feature: name of the map.
            bottom_up, args, kwargs: FPN's.
        """
        super().__init__(bottom_up, *args, **kwargs)
        self.detail_feature = detail_feature

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        given = self.bottom_up(x)
        merged, levels = None, []
        names = reversed(self.in_features)  # from the coarsest level down, as both lists of convolutions are
        for name, lateral_conv, output_conv in zip(names, self.lateral_convs, self.output_convs, strict=True):
            lateral = lateral_conv(given[name])
            if merged is not None:
                lateral = lateral + F.interpolate(merged, scale_factor=2.0, mode="nearest")
                lateral = lateral / 2 if self._fuse_type == "avg" else lateral
            merged = lateral
            levels.append(output_conv(merged))
        above = [] if self.top_block is None else self.top_block(levels[0])
        features = dict(zip(self._out_features, [*reversed(levels), *above], strict=True))
        return {**features, self.detail_feature: given[self.detail_feature]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        shape = self.bottom_up.output_shape()[self.detail_feature]
        return {**super().output_shape(), self.detail_feature: shape}


def build_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """FPN over a network, from ``MODEL.FPN``, with the levels above p5 and the map that refinement looks at."""
    fpn, top_block = cfg.MODEL.FPN, build_top_block(cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.MEINST.TOP_LEVELS)
    parts = (bottom_up, list(fpn.IN_FEATURES), fpn.OUT_CHANNELS, fpn.NORM, top_block, fpn.FUSE_TYPE)
    detail = detail_feature_of(cfg)
    return DetailFPN(detail, *parts) if detail else FPN(*parts)


def detail_feature_of(cfg: CfgNode) -> str:
    """The map below FPN's levels that refinement looks at, or an empty string."""
    refine = cfg.MODEL.MEINST.REFINE
    name: str = refine.DETAIL_FEATURE if cfg.MODEL.MASK_ON and refine.ENABLED else ""
    return name


class ExtraLevels(Backbone):
    """Another backbone with p6 and perhaps p7, made from its p5."""

    def __init__(self, backbone: Backbone, num_levels: int) -> None:
        """
        Args:
            backbone: gives p5.
            num_levels: 1 (p6) or 2 (p6 and p7); levels of these names that the backbone gives are replaced.
        """
        super().__init__()
        self.backbone = backbone
        p5 = backbone.output_shape()["p5"]
        self.top_block = build_top_block(p5.channels, num_levels)
        self._shapes = {
            f"p{6 + i}": ShapeSpec(channels=p5.channels, stride=p5.stride * 2 ** (i + 1)) for i in range(num_levels)
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        return {**features, **dict(zip(self._shapes, self.top_block(features["p5"]), strict=True))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {**self.backbone.output_shape(), **self._shapes}

    @property
    def size_divisibility(self) -> int:
        return self.backbone.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.backbone.padding_constraints


def complete_pyramid(backbone: Backbone, names: Sequence[str], num_levels: int) -> Backbone:
    """The backbone, with the levels above p5 that ``names`` asks for and it does not give.

    Args:
        backbone: of Detectron2's BACKBONE_REGISTRY.
        names: features that the head needs.
        num_levels: levels above p5 that may be added.
    """
    given = backbone.output_shape()
    missing = {f"p{6 + i}" for i in range(num_levels)} & set(names) - set(given)
    return ExtraLevels(backbone, num_levels) if "p5" in given and missing else backbone


@BACKBONE_REGISTRY.register()
def build_meinst_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the backbone from ``MODEL.RESNETS``, ``MODEL.FPN`` and ``MODEL.MEINST.TOP_LEVELS``."""
    detail = detail_feature_of(cfg)
    if detail and detail not in cfg.MODEL.RESNETS.OUT_FEATURES:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.RESNETS.OUT_FEATURES = [detail, *cfg.MODEL.RESNETS.OUT_FEATURES]
    return build_fpn(cfg, build_bottom_up(cfg, input_shape))
