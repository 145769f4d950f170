"""Taking over a config and weights of the published implementation (AdelaiDet), checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from contextlib import ExitStack
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from torch import Tensor

import meinst_d2.data.datasets  # noqa: F401  registers the generated shapes
from meinst_d2.checkpoint.checkpointer import CheckpointInfo
from meinst_d2.config_file import read_plain_yaml
from meinst_d2.encoding import load_components
from meinst_d2.files import atomic_path, require_writable
from meinst_d2.model_zoo.adelaidet.config import translate_config
from meinst_d2.model_zoo.publish import safetensors_of
from meinst_d2.model_zoo.trained import build, read_weights, require_same_tensors
from meinst_d2.model_zoo.zoo import config_from_string
from meinst_d2.modeling.proposal_generator import GENERATOR_PREFIX

ENCODER_PREFIX = GENERATOR_PREFIX + "mask_encoder."


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
    translated = translate_config(read_plain_yaml(config))
    text = yaml.safe_dump(translated.keys)
    cfg = config_from_string(text)
    state = read_weights(weights)[0]["model"]
    _fill_components(state, cfg, weights, components)
    model = build(cfg, "meta")
    strides = tuple(model.proposal_generator.assignment_rule.strides)
    if translated.strides != strides:
        fix = f"the backbone gives {list(strides)} for MODEL.MEInst.IN_FEATURES"
        raise ValueError(f"MODEL.MEInst.FPN_STRIDES {list(translated.strides)} has no counterpart here: {fix}")
    require_same_tensors(model, state, weights)
    state = {name: state[name].to(value.dtype).contiguous() for name, value in model.state_dict().items()}
    about = {key: value for key, value in CheckpointInfo.from_config(cfg).content.items() if value is not None}
    if len(about.get("class_names", ())) != cfg.MODEL.MEINST.NUM_CLASSES:
        about.pop("class_names", None)
    about |= {"config": text, "source": "AdelaiDet"}
    with ExitStack() as stack:  # all of the files or none
        torch.save({"model": state, "meinst": about}, stack.enter_context(atomic_path(folder / "model.pth")))
        if safetensors:
            stack.enter_context(atomic_path(folder / "model.safetensors")).write_bytes(safetensors_of(state, about))
        stack.enter_context(atomic_path(folder / "config.yaml")).write_text(text)
    return translated.notes


def _fill_components(state: MutableMapping[str, Tensor], cfg: CfgNode, weights: object, components: str | None) -> None:
    """Put the components of a file into weights that lack them.

    Raises:
        ValueError: there are no components anywhere, they do not fit the config, or the two sources differ.
    """
    carried = {
        key.removeprefix(ENCODER_PREFIX): value for key, value in state.items() if key.startswith(ENCODER_PREFIX)
    }
    fitted = bool(carried) and all(bool(value.any()) for value in carried.values())
    if components is None:
        if not fitted:
            fix = "add --components FILE.npz with the components that the model was trained with"
            raise ValueError(f"{weights} carries no mask components (absent or all zero): {fix}")
        return
    found, meinst = load_components(components), cfg.MODEL.MEINST
    for name, value, wanted in (
        ("dictionaries", len(found.bases), 1),
        ("D", found.basis.dim, meinst.DIM_MASK),
        ("S", found.basis.mask_size, meinst.MASK_SIZE),
        ("sigmoid", found.sigmoid, meinst.SIGMOID),
    ):
        if value != wanted:
            raise ValueError(
                f"the components in {components} have {name} = {value}, the config needs {wanted}: give others"
            )
    basis = found.basis
    arrays = {"components": basis.components, "means": basis.mean, "explained_variances": basis.explained_variance}
    for name, array in arrays.items():
        value, there = torch.as_tensor(array), carried.get(name)
        equal = there is not None and there.shape == value.shape and torch.allclose(there.float(), value, 1e-5, 1e-6)
        if fitted and not equal:
            raise ValueError(f"{weights} carries other components than {components}: leave out --components")
        state[ENCODER_PREFIX + name] = value
