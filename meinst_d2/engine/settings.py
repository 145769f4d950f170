"""Values of single keys, and of a few together, that cannot work."""

from __future__ import annotations

import functools
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

NEEDED = ("MODEL.DEVICE", "MODEL.WEIGHTS", "OUTPUT_DIR", "INPUT.FORMAT")
"""Keys that null does not leave to anything; those of ``MODEL.MEINST`` are others."""
LEAST = {
    "MODEL.MEINST.NUM_CLASSES": 1,
    "MODEL.MEINST.DIM_MASK": 1,
    "MODEL.MEINST.MASK_SIZE": 2,
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 0,
    "TEST.DETECTIONS_PER_IMAGE": 0,
}
"""The least values of keys that count something."""


def require_values(cfg: CfgNode) -> None:
    """Raise a ValueError if a key has no value, or counts less than there can be."""
    for key in (*NEEDED, *(f"MODEL.MEINST.{name}" for name in cfg.MODEL.MEINST)):
        if _value(cfg, key) is None:
            raise ValueError(f"{key} has no value: give it one, or remove it from the config")
    for key, least in LEAST.items():
        if _value(cfg, key) < least:
            raise ValueError(f"{key} = {_value(cfg, key)} must be at least {least}")
    meinst = cfg.MODEL.MEINST
    if meinst.DIM_MASK > meinst.MASK_SIZE**2:
        raise ValueError(
            f"MODEL.MEINST.DIM_MASK = {meinst.DIM_MASK} is more than the {meinst.MASK_SIZE**2} pixels of a template of "
            f"MODEL.MEINST.MASK_SIZE = {meinst.MASK_SIZE}: choose fewer"
        )


def _value(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def check_parts(cfg: CfgNode) -> None:
    """Raise a ValueError if the model or its backbone has a name that nothing is registered under."""
    for key, registry in (("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY), ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)):
        if _value(cfg, key) not in registry:
            raise ValueError(f"{key} = {_value(cfg, key)!r} is registered nowhere: import what defines it")


def check_device(cfg: CfgNode) -> None:
    """Raise a ValueError unless torch has the device."""
    try:
        torch.device(cfg.MODEL.DEVICE)
    except RuntimeError as error:
        raise ValueError(f"MODEL.DEVICE = {cfg.MODEL.DEVICE!r} is no device: choose cpu, cuda or cuda:N") from error
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but torch sees no GPU: add MODEL.DEVICE cpu to the command"
        )


def check_batch(cfg: CfgNode, num_processes: int) -> None:
    """Raise a ValueError unless the batch can be divided among processes and parts."""
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name a dataset to train on")
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    parts = cfg.SOLVER.GRADIENT_ACCUMULATION
    share = batch // (reference or num_processes)
    if parts < 1 or share % parts:
        raise ValueError(
            f"SOLVER.GRADIENT_ACCUMULATION = {parts} cannot divide the {share} images that a process has in a batch "
            f"of SOLVER.IMS_PER_BATCH = {batch}: choose a divisor"
        )
    if parts > 1 and cfg.MODEL.META_ARCHITECTURE != "MEInstDetector":
        raise ValueError(
            f"SOLVER.GRADIENT_ACCUMULATION = {parts} needs MODEL.META_ARCHITECTURE MEInstDetector, "
            f"{cfg.MODEL.META_ARCHITECTURE} normalises its losses otherwise: set it to 1"
        )
    if reference == 0 and batch % num_processes:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH = {batch} cannot be shared by {num_processes} processes: choose a multiple"
        )


def check_validation(cfg: CfgNode) -> None:
    """Raise a ValueError unless the settings of evaluation go together."""
    test, decay = cfg.TEST, cfg.SOLVER.EMA_DECAY
    if not 0 <= decay < 1:
        raise ValueError(f"SOLVER.EMA_DECAY = {decay} must be below 1, such as 0.9998, or 0 for no average")
    if test.BEST_METRIC and test.BEST_METRIC.split("/")[0] not in ("segm", "bbox"):
        raise ValueError(
            f"TEST.BEST_METRIC = {test.BEST_METRIC!r} is no metric: set it to segm/AP, bbox/AP50 or the like"
        )
    if test.PATIENCE < 0 or (
        test.PATIENCE > 0 and not (test.EVAL_PERIOD > 0 and test.BEST_METRIC and cfg.DATASETS.TEST)
    ):
        raise ValueError(
            f"TEST.PATIENCE = {test.PATIENCE} counts evaluations during training: set TEST.EVAL_PERIOD, "
            "TEST.BEST_METRIC and DATASETS.TEST, or TEST.PATIENCE 0"
        )
    if test.VALIDATION_LOSS and cfg.MODEL.META_ARCHITECTURE != "MEInstDetector":
        raise ValueError(
            f"TEST.VALIDATION_LOSS needs MODEL.META_ARCHITECTURE MEInstDetector, not {cfg.MODEL.META_ARCHITECTURE}: "
            "set it to False"
        )
