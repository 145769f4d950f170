"""The optimizer, from config."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from meinst_d2.config import check_choices


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, or AdamW with the same parameter groups and gradient clipping."""
    check_choices(cfg)
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(
        params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY
    )
