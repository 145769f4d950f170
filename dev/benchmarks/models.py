"""The models that are measured: ours and Detectron2's, with random weights that behave like trained ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

CONFIG = "MEInst_R_50_1x_none.yaml"
REFINED = ("MODEL.MEINST.REFINE.ENABLED", True, "MODEL.MEINST.REFINE.CONV_DIM", 128)
REFINED += (
    "MODEL.MEINST.REFINE.MEAN_BOX",
    True,
    "MODEL.MEINST.REFINE.MASKNESS",
    True,
    "MODEL.MEINST.REFINE.CLASSIFY",
    True,
)
"""What MEInst_R_50_1x_refined.yaml adds."""
BOX_SIDE = 250
"""Of our boxes, in pixels: 6% of an image of 800 x 1333."""
DETECTRON2 = {
    "Mask R-CNN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "RetinaNet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "FCOS": "COCO-Detection/fcos_R_50_FPN_1x.py",
}


def our_config(args: argparse.Namespace, *overrides: Any) -> Any:
    """MEInst_R_50_1x_none on the device of the command line."""
    from detectron2.config import get_cfg

    import meinst_d2.modeling  # noqa: F401  registers the model
    from meinst_d2 import add_meinst_config
    from meinst_d2.config_file import merge_config_file

    cfg = get_cfg()
    add_meinst_config(cfg)
    merge_config_file(cfg, str(ROOT / "configs" / CONFIG))
    cfg.merge_from_list(["MODEL.DEVICE", args.device, "MODEL.MEINST.PRECISION", args.precision, *overrides])
    cfg.MODEL.MEINST.COMPONENTS = str(components(cfg.MODEL.MEINST.MASK_SIZE, cfg.MODEL.MEINST.DIM_MASK))
    return cfg


def our_model(cfg: Any, images: Sequence[dict[str, Any]]) -> Any:
    """Random weights, and boxes of one size at every location."""
    import torch
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    model = build_model(cfg).eval()
    head, strides = model.proposal_generator.head, model.proposal_generator.assignment_rule.strides
    with torch.no_grad():
        head.bbox_pred.weight.zero_()
        head.bbox_pred.bias.fill_(1)
        for scale, stride in zip(head.scales, strides, strict=True):
            for parameter in scale.parameters():
                parameter.fill_(BOX_SIDE / 2 / stride)
    normalise(model, images)
    return model


def detectron2_model(name: str, args: argparse.Namespace, images: Sequence[dict[str, Any]]) -> Any:
    """A model of Detectron2's own zoo with random weights."""
    import torch
    from detectron2 import model_zoo
    from detectron2.config import CfgNode, instantiate
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(DETECTRON2[name])
    torch.manual_seed(0)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = args.device
        model = build_model(cfg).eval()
    else:
        model = instantiate(cfg.model).to(args.device).eval()
    normalise(model, images)
    return model


def normalise(model: Any, images: Sequence[dict[str, Any]]) -> None:
    """Set the frozen statistics of batch norms to those of some images, as they are in trained weights.

    Without this the features of random weights grow from layer to layer until probabilities are 0 or 1 and boxes
    have no area, and what comes after the network has next to nothing to do.
    """
    import torch
    from detectron2.layers import FrozenBatchNorm2d

    def take_statistics(norm: Any, inputs: Any) -> None:
        norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        norm.running_var.copy_(inputs[0].var((0, 2, 3)))

    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    handles = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()


def components(mask_size: int, dim: int) -> Path:
    """A file with the components of random ellipses, made once."""
    import numpy as np

    from meinst_d2.encoding import PixelMoments, fit_pca, save_components

    path = ROOT / f"output/benchmark/components_{mask_size}_{dim}.npz"
    if not path.is_file():
        y, x = np.mgrid[:mask_size, :mask_size] / mask_size
        cx, cy, rx, ry = np.random.default_rng(0).uniform(0.3, 0.7, (4, 2000, 1, 1))
        moments = PixelMoments(mask_size)
        moments.update(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)
        save_components(path, [fit_pca(moments).truncated(dim)], {})
    return path
