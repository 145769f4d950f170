"""The parts of the mask branch that every detector shares, from ``MODEL.MEINST``, and its targets."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils import comm
from torch import Tensor

from meinst_d2.config import CHOICES
from meinst_d2.encoding import (
    MASK_ENCODER_REGISTRY,
    FittedEncoder,
    MaskEncoder,
    PixelEncoder,
    SigmoidClamp,
    load_components,
)
from meinst_d2.modeling.head import TowerConfig
from meinst_d2.modeling.inference import MaskOutput, PasteBox
from meinst_d2.modeling.layers import DeformType, NormType
from meinst_d2.modeling.mask_loss import MaskLoss, MaskLossWeights, MaskRepresentation
from meinst_d2.modeling.refinement import RefinementHead

CHOICES.update(
    {
        "MODEL.MEINST.NORM": get_args(NormType),
        "MODEL.MEINST.DEFORM_CONV": get_args(DeformType),
        "MODEL.MEINST.MASK_REPRESENTATION": get_args(MaskRepresentation),
        "MODEL.MEINST.MASK_LOSS_WEIGHTS": get_args(MaskLossWeights),
        "MODEL.MEINST.MASK_PASTE_BOX": get_args(PasteBox),
        "MODEL.MEINST.MASK_OUTPUT": get_args(MaskOutput),
    }
)

NOT_FITTED = (
    "this model has no mask components, so it can neither learn nor draw masks: make them with "
    "meinst fit --dataset NAME --output FILE and set MODEL.MEINST.COMPONENTS FILE, or load weights that carry them"
)


def build_towers(cfg: CfgNode) -> TowerConfig:
    """What the towers and the mask predictor are made of."""
    meinst = cfg.MODEL.MEINST
    return TowerConfig(
        num_shared_convs=meinst.NUM_SHARE_CONVS,
        num_cls_convs=meinst.NUM_CLS_CONVS,
        num_box_convs=meinst.NUM_BOX_CONVS,
        num_mask_convs=meinst.NUM_MASK_CONVS,
        norm=meinst.NORM,
        deform=meinst.DEFORM_CONV,
        deform_modulated=meinst.DEFORM_MODULATED,
        large_kernel_size=meinst.LARGE_KERNEL_SIZE if meinst.MASK_PREDICTOR == "large_kernel" else None,
    )


def build_mask_loss(cfg: CfgNode) -> MaskLoss:
    """The loss of the mask branch."""
    meinst = cfg.MODEL.MEINST
    return MaskLoss(
        representation=meinst.MASK_REPRESENTATION, loss_type=meinst.MASK_LOSS_TYPE, weights=meinst.MASK_LOSS_WEIGHTS
    )


def build_refinement(
    cfg: CfgNode, in_features: Sequence[str], input_shape: Mapping[str, ShapeSpec]
) -> RefinementHead | None:
    """What corrects the masks of detections; None where that is not asked for.

    Args:
        in_features: of the other branches.
        input_shape: of every feature map of the backbone.
    """
    refine = cfg.MODEL.MEINST.REFINE
    if not (cfg.MODEL.MASK_ON and refine.ENABLED):
        return None
    detail = refine.DETAIL_FEATURE
    if detail and detail not in input_shape:
        raise ValueError(
            f"MODEL.MEINST.REFINE.DETAIL_FEATURE = {detail!r}, the backbone {cfg.MODEL.BACKBONE.NAME} gives "
            f"{', '.join(input_shape)}: set it to '', or MODEL.BACKBONE.NAME to build_meinst_resnet_fpn_backbone"
        )
    return RefinementHead(
        in_features={name: input_shape[name] for name in in_features},
        detail_feature=(detail, input_shape[detail]) if detail else None,
        context=refine.CONTEXT,
        pooler_resolution=refine.POOLER_RESOLUTION,
        output_size=refine.OUTPUT_SIZE,
        conv_dim=refine.CONV_DIM,
        num_convs=refine.NUM_CONVS,
        code_as_prior=refine.CODE_AS_PRIOR,
        mean_box=refine.MEAN_BOX,
        maskness=refine.MASKNESS,
        num_classes=cfg.MODEL.MEINST.NUM_CLASSES if refine.CLASSIFY else 0,
        samples_per_image=refine.SAMPLES_PER_IMAGE,
        target_size=refine.TARGET_SIZE,
        loss_weight=refine.LOSS_WEIGHT,
        loss_weight_cls=refine.LOSS_WEIGHT_CLS,
    )


def build_mask_encoder(cfg: CfgNode) -> MaskEncoder | None:
    """The encoder, with the components of ``MODEL.MEINST.COMPONENTS`` where that file exists; None without masks."""
    meinst = cfg.MODEL.MEINST
    if not cfg.MODEL.MASK_ON:
        return None
    if meinst.MASK_REPRESENTATION == "none":
        return PixelEncoder(mask_size=meinst.MASK_SIZE)
    encoder_class = MASK_ENCODER_REGISTRY.get(meinst.ENCODER)
    kwargs = {"num_classes": meinst.NUM_CLASSES} if encoder_class.class_specific else {}
    encoder: MaskEncoder = encoder_class(
        dim=meinst.DIM_MASK,
        mask_size=meinst.MASK_SIZE,
        sigmoid=meinst.SIGMOID,
        whiten=meinst.WHITEN,
        clamp=SigmoidClamp(*meinst.SIGMOID_CLAMP),
        **kwargs,
    )
    return with_components(encoder, meinst.COMPONENTS)


def with_components(encoder: MaskEncoder, path: str) -> MaskEncoder:
    """The encoder, with the components of a file if it needs any and the file exists; '' names none."""
    if isinstance(encoder, FittedEncoder) and path:
        if os.path.isfile(path):
            encoder.load_bases(load_components(path).bases)
        else:
            logging.getLogger(__name__).info(f"There is no {path}: the mask components must come with the weights.")
    return encoder


def reduce_mean(value: Tensor) -> Tensor:
    """The mean over training processes of a tensor that carries no gradient."""
    world_size = comm.get_world_size()
    if world_size == 1:
        return value
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value / world_size
