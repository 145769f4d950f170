"""Configs kept as text, and whether weights belong to them, without building the model in memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn

import meinst_d2.modeling  # noqa: F401  registers the model
from meinst_d2 import add_meinst_config
from meinst_d2.config_file import MALFORMED, ConfigError, plain_yaml, sentence


def config_from_text(text: str, what: object = "the config") -> CfgNode:
    """A config from YAML of plain values.

    Args:
        text: YAML.
        what: where it is from.

    Raises:
        ValueError: it is not YAML of plain values, or has keys or types that this version does not know.
    """
    cfg = get_cfg()
    add_meinst_config(cfg)
    try:
        cfg.merge_from_other_cfg(CfgNode(plain_yaml(text)))
    except MALFORMED as error:
        raise ConfigError(f"{what} does not fit this version of meinst_d2: {sentence(error, cfg)}") from error
    return cfg


def build_on_meta(cfg: CfgNode) -> nn.Module:
    """The model of a config, without memory for its weights.

    Raises:
        ValueError: the config cannot be built.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.MEINST.COMPONENTS = ""
    try:
        with torch.device("meta"):
            return build_model(cfg)
    except (AssertionError, KeyError) as error:
        raise ValueError(f"the config cannot be built: {type(error).__name__} {error}") from error


def require_same_tensors(model: nn.Module, state: Mapping[str, Tensor], path: object) -> None:
    """Raise a ValueError that lists the tensors that are missing, unexpected or of another shape.

    Args:
        model: on any device.
        state: weights by our names.
        path: where they are from.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise ValueError(f"the weights in {path} do not belong to the config:\n  " + "\n  ".join(problems))
