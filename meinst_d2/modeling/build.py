"""The parts of the mask branch that every detector shares, from ``MODEL.MEINST``, and its targets."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import get_args

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
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


def mask_templates(gt_instances: Sequence[Instances], mask_size: int) -> Tensor:
    """Every instance's mask, cropped to its box and resized, once.

    Takes ``gt_mask_templates`` as MEInstDatasetMapper makes them, or ``gt_masks`` (PolygonMasks or BitMasks) as
    Detectron2's own mapper does.

    Args:
        gt_instances: of N images; images without instances need no masks.
        mask_size: S.

    Returns:
        (M, S, S) bool on the device of the instances, one image after another.

    Raises:
        ValueError: an image has instances without masks, or templates of another size.
    """
    templates = []
    for instances in gt_instances:
        if len(instances) == 0:
            continue
        if instances.has("gt_mask_templates"):
            template = instances.gt_mask_templates
            if template.shape[-2:] != (mask_size, mask_size):
                raise ValueError(
                    f"the loader made mask templates of {tuple(template.shape[-2:])}, the model has "
                    f"MODEL.MEINST.MASK_SIZE = {mask_size}: build the mapper from the same config"
                )
            templates.append(template.bool())
        elif instances.has("gt_masks"):
            templates.append(instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, mask_size))
        else:
            fix = "train on a dataset with segmentations, or set MODEL.MASK_ON False"
            raise ValueError(f"an image has instances without masks: {fix}")
    if not templates:
        return torch.zeros(0, mask_size, mask_size, dtype=torch.bool)
    return torch.cat(templates)
