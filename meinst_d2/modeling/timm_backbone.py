"""Backbones of timm under a feature pyramid; timm is an extra, pip install 'meinst_d2[timm]'."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from meinst_d2.modeling.backbones import build_fpn, build_top_block, detail_feature_of

NAME = "build_timm_fpn_backbone"
LEVELS = ("res3", "res4", "res5")
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
"""What makes models of timm take images of any size, each where a model knows it."""


def require_timm() -> ModuleType:
    """The package; ModuleNotFoundError with a sentence where it is not installed."""
    try:
        import timm
    except ModuleNotFoundError as error:
        fix = "pip install 'meinst_d2[timm]'"
        raise ModuleNotFoundError(f"{NAME} needs timm, which is not installed: {fix}") from error
    return timm


def data_config(name: str) -> dict[str, Any]:
    """What timm says of the images that a model was trained on: ``mean`` and ``std`` of RGB in [0, 1], and more."""
    timm = require_timm()
    if not timm.is_model(name):
        like = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3))
        fix = f"did you mean {like}?" if like else "timm.list_models() names all"
        raise ValueError(f"MODEL.TIMM.NAME = {name!r} is no model of timm: {fix}")
    return timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())


def settle_pixels(cfg: CfgNode) -> None:
    """Give the config the pixel statistics and the order of channels of its timm model, unless it has set its own."""
    if cfg.MODEL.BACKBONE.NAME != NAME:
        return
    default, model = get_cfg(), cfg.MODEL
    own = (cfg.INPUT.FORMAT, list(model.PIXEL_MEAN), list(model.PIXEL_STD))
    if own == (default.INPUT.FORMAT, list(default.MODEL.PIXEL_MEAN), list(default.MODEL.PIXEL_STD)):
        about = data_config(model.TIMM.NAME)
        cfg.INPUT.FORMAT = "RGB"
        model.PIXEL_MEAN, model.PIXEL_STD = ([round(255 * x, 3) for x in about[key]] for key in ("mean", "std"))


class TimmBackbone(Backbone):
    """Feature maps of a timm model; the one with stride 2**k is called ``res{k}``.

    Transformers whose maps all have one stride give the last of them.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        checkpoint: str = "",
        out_features: Sequence[str] = LEVELS,
        freeze_at: int = 0,
        freeze_norm: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        """
        Args:
            name: of a timm model, such as "tf_efficientnet_lite0" or "convnext_tiny.fb_in22k".
            pretrained: start from the weights that timm downloads.
            checkpoint: start from those of a file, with timm's names.
            out_features: of the maps that are wanted; a map with a stride that comes twice is the later one.
            freeze_at: keep the stem (1) and this many stages less one as they start.
            freeze_norm: keep batch normalisation as it starts, statistics included; other kinds are trained.
            drop_path: rate of stochastic depth.

        Raises:
            ModuleNotFoundError: timm is not installed.
            ValueError: timm has no such model, or not with these feature maps; the weights are not the model's.
            OSError: the weights cannot be read or downloaded.
        """
        super().__init__()
        data_config(name)
        probe, options = _probe(name, {"drop_path_rate": drop_path} if drop_path else {})
        strides: list[int] = probe.feature_info.reduction()
        index = {f"res{math.log2(stride):g}": i for i, stride in zip(probe.out_indices, strides, strict=True)}
        self.is_plain = len(strides) > 1 and len(set(strides)) == 1
        names = list(index) if self.is_plain else list(out_features)
        missing = [feature for feature in names if feature not in index]
        if missing:
            has = ", ".join(index)
            raise ValueError(f"{name} of timm gives no {', '.join(missing)}: MODEL.FPN.IN_FEATURES can be of {has}")
        self.net = _create(name, {**options, "out_indices": [index[feature] for feature in names]}, pretrained)
        if checkpoint:
            _load(self.net.model, checkpoint, name)
        info = self.net.feature_info
        self._out_features = names
        self._out_feature_strides = dict(zip(names, info.reduction(), strict=True))
        self._out_feature_channels = dict(zip(names, info.channels(), strict=True))
        self._freeze(freeze_at, freeze_norm)

    def _freeze(self, freeze_at: int, freeze_norm: bool) -> None:
        from timm.layers import freeze_batch_norm_2d

        stage = layer_numbers(self.net.model, coarse=True)
        for name, parameter in self.net.model.named_parameters():
            if stage[name] < freeze_at:
                parameter.requires_grad = False
        for parent in list(self.net.modules()):
            for name, norm in parent.named_children():
                if isinstance(norm, _BatchNorm) and (freeze_norm or not norm.weight.requires_grad):
                    setattr(parent, name, freeze_batch_norm_2d(norm))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(self._out_features, self.net(x), strict=True))

    def lr_factors(self, decay: float) -> dict[str, float]:
        """Factors of the learning rate by parameter: ``decay`` in the last layer, its square in the one below, ..."""
        layers = layer_numbers(self.net.model, coarse=False)
        top = max(layers.values())
        return {f"net.model.{name}": decay ** (top + 1 - layer) for name, layer in layers.items()}


class PlainPyramid(SimpleFeaturePyramid):
    """Levels from one map of a plain transformer (ViTDet), for images of any size: Detectron2's asks for no padding."""

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides[name] for name in ("p3", "p4", "p5"))

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {}


def layer_numbers(model: nn.Module, *, coarse: bool) -> dict[str, int]:
    """The stage (``coarse``) or the layer of every parameter by its name, from 0, as timm groups them."""
    from timm.models import group_parameters

    return dict(group_parameters(model, model.group_matcher(coarse=coarse), reverse=True))


def lr_factors(model: nn.Module, decay: float) -> dict[str, float]:
    """By the names of a detector's parameters, see :meth:`TimmBackbone.lr_factors`; those of other parts are absent."""
    factors = {}
    for prefix, module in model.named_modules():
        if isinstance(module, TimmBackbone) and decay != 1:
            factors |= {f"{prefix}.{name}": factor for name, factor in module.lr_factors(decay).items()}
    return factors


def _create(name: str, options: dict[str, Any], pretrained: bool = False) -> Any:
    try:
        return require_timm().create_model(
            name, pretrained=pretrained, features_only=True, feature_cls="getter", **options
        )
    except (AssertionError, AttributeError, RuntimeError) as error:
        if pretrained:
            fix = "name a file of its weights in MODEL.TIMM.CHECKPOINT"
            raise OSError(f"timm could not load the weights of {name} ({error}): {fix}") from error
        raise ValueError(f"timm gives no feature maps of {name} ({error}): choose another MODEL.TIMM.NAME") from error


def _probe(name: str, wanted: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model without memory for its weights, and the options that it takes."""
    with torch.device("meta"):
        for options in ANY_SIZE:
            try:
                return _create(name, options | wanted), options | wanted
            except TypeError:
                continue
    key = "MODEL.TIMM.DROP_PATH must be 0"
    raise ValueError(f"{name} of timm takes none of the options {', '.join(wanted)}: {key}")


def _load(model: nn.Module, path: str, name: str) -> None:
    from timm.models import load_state_dict

    missing, _ = model.load_state_dict(load_state_dict(path), strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        lacks = f"lacks {len(missing)} tensors of {name}, {missing[0]} among them"
        raise ValueError(f"MODEL.TIMM.CHECKPOINT {path} {lacks}: name a file of this model's weights with timm's names")


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """Build the backbone from ``MODEL.TIMM``, ``MODEL.FPN``, ``MODEL.BACKBONE.FREEZE_AT`` and the levels above p5.

    Weights are loaded only where ``MODEL.WEIGHTS`` names none of the whole detector.
    """
    timm, fpn, start = cfg.MODEL.TIMM, cfg.MODEL.FPN, not cfg.MODEL.WEIGHTS
    bottom_up = TimmBackbone(
        timm.NAME,
        pretrained=timm.PRETRAINED and not timm.CHECKPOINT and start,
        checkpoint=timm.CHECKPOINT if start else "",
        out_features=sorted({*fpn.IN_FEATURES, detail_feature_of(cfg)} - {""}),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        freeze_norm=timm.FREEZE_NORM,
        drop_path=timm.DROP_PATH,
    )
    if bottom_up.is_plain:
        [(feature, shape)] = bottom_up.output_shape().items()
        scales = [shape.stride / stride for stride in (8, 16, 32)]
        top_block = build_top_block(fpn.OUT_CHANNELS, cfg.MODEL.MEINST.TOP_LEVELS)
        return PlainPyramid(bottom_up, feature, fpn.OUT_CHANNELS, scales, top_block, norm=fpn.NORM or "LN")
    return build_fpn(cfg, bottom_up)
