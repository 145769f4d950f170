"""From their two files to ours, checked against the model before anything is written."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import Tensor

import meinst_d2.data.datasets  # noqa: F401  registers the generated shapes
from meinst_d2.checkpoint.checkpointer import CheckpointInfo
from meinst_d2.checkpoint.readers import save_safetensors
from meinst_d2.files import atomic_path, require_writable
from meinst_d2.model_zoo.adelaidet.config import TranslatedConfig, read_published_config, translate_config
from meinst_d2.model_zoo.adelaidet.weights import fill_components, read_published_weights
from meinst_d2.model_zoo.verify import build_on_meta, config_from_text, require_same_tensors


def import_checkpoint(
    config: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    components: str | None = None,
    safetensors: bool = False,
) -> list[str]:
    """Write ``config.yaml`` and ``model.pth`` for a published config and its weights.

    Args:
        config: their .yaml, short with its ``_BASE_`` or complete.
        weights: their .pth.
        output: a folder; nothing is written to it unless everything fits.
        components: a components file (.npz), for weights that do not carry the components.
        safetensors: also write ``model.safetensors``.

    Returns:
        A sentence about everything that was dropped, assumed or does not mean what it seems to.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the config has no counterpart here, or the weights do not belong to it.
    """
    folder = Path(output)
    require_writable(folder / "config.yaml")
    translated = translate_config(read_published_config(config))
    text = yaml.safe_dump(translated.keys)
    cfg = config_from_text(text)
    state = read_published_weights(weights)
    fill_components(state, cfg, weights, components)
    state = _checked(state, cfg, translated, weights)
    about = {key: value for key, value in CheckpointInfo.from_config(cfg).content.items() if value is not None}
    if len(about.get("class_names", ())) != cfg.MODEL.MEINST.NUM_CLASSES:
        about.pop("class_names", None)
    _write(folder, text, state, about | {"config": text, "source": "AdelaiDet"}, safetensors)
    return translated.notes


def _checked(
    state: dict[str, Tensor], cfg: CfgNode, translated: TranslatedConfig, weights: object
) -> dict[str, Tensor]:
    """The weights in the model's order and types, once they are known to fit it."""
    model = build_on_meta(cfg)
    strides = model.proposal_generator.assignment_rule.strides
    if tuple(translated.strides) != tuple(strides):
        raise ValueError(
            f"MODEL.MEInst.FPN_STRIDES {list(translated.strides)} has no counterpart here: the backbone gives "
            f"{list(strides)} for MODEL.MEInst.IN_FEATURES"
        )
    require_same_tensors(model, state, weights)
    return {name: state[name].to(value.dtype).contiguous() for name, value in model.state_dict().items()}


def _write(folder: Path, text: str, state: dict[str, Tensor], about: dict[str, Any], safetensors: bool) -> None:
    with ExitStack() as stack:  # all of them or none
        torch.save({"model": state, "meinst": about}, stack.enter_context(atomic_path(folder / "model.pth")))
        if safetensors:
            save_safetensors(stack.enter_context(atomic_path(folder / "model.safetensors")), state, about)
        stack.enter_context(atomic_path(folder / "config.yaml")).write_text(text)
