"""Configs and models by name, file or URL."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

import meinst_d2.modeling  # noqa: F401  registers the model
from meinst_d2 import add_meinst_config
from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer, info_of
from meinst_d2.checkpoint.download import fetch, require_hash
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.config_file import merge_config_file
from meinst_d2.model_zoo.entries import ENTRIES
from meinst_d2.model_zoo.verify import config_from_text, require_same_tensors
from meinst_d2.modeling.published_names import settle_names

CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")
"""Where an installed package and a checkout have them."""
WEIGHT_SUFFIXES = (".pth", ".pyth", ".pkl", ".safetensors")


def get_config_file(name: str) -> str:
    """The path of a config of this project.

    Args:
        name: below ``configs/``: "MEInst_R_50_3x", "demo/shapes.yaml", "lazy/meinst_r50.py"; .yaml can be left out.

    Raises:
        ValueError: there is none; the sentence names the nearest.
    """
    name = name.removesuffix(".yaml")
    folder = next((folder for folder in CONFIG_FOLDERS if folder.is_dir()), None)
    if folder is None:
        raise ValueError(f"there are no configs at {' or '.join(map(str, CONFIG_FOLDERS))}: install meinst_d2 again")
    files = [path for suffix in ("yaml", "py") for path in folder.rglob(f"*.{suffix}")]
    known = {path.relative_to(folder).as_posix().removesuffix(".yaml"): path for path in files}
    if name not in known:
        near = difflib.get_close_matches(name, known, 3, 0.3)
        raise ValueError(f"there is no config {name}" + (f": did you mean {' or '.join(near)}?" if near else ""))
    return str(known[name])


def get_config(name: str, trained: bool = False) -> CfgNode | DictConfig:
    """A config of this project by name, a LazyConfig where it is a .py.

    Args:
        name: see :func:`get_config_file`.
        trained: set ``MODEL.WEIGHTS`` to the trained model, as :func:`get_checkpoint_url` has it; otherwise they are
            those that training starts from.
    """
    file = get_config_file(name)
    if file.endswith(".py"):
        cfg = LazyConfig.load(file)
        if trained:
            cfg.train.init_checkpoint = get_checkpoint_url(name)
        return cfg
    cfg = get_cfg()
    add_meinst_config(cfg)
    merge_config_file(cfg, file)
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def get_checkpoint_url(name: str) -> str:
    """The URL of the model that was trained with a config.

    Raises:
        ValueError: there is no such model, or only a page that links it is known; the sentence says where.
    """
    get_config_file(name)
    entry = ENTRIES.get(name.removesuffix(".yaml"))
    if entry is None:
        raise ValueError(f"there is no trained model for {name}: train it with meinst train")
    if entry.url is None:
        raise ValueError(
            f"the checkpoint of {name} has to be downloaded by hand from {entry.source} ({entry.licence}): give its "
            "path as MODEL.WEIGHTS"
        )
    return entry.url


def get(source: str | os.PathLike[str], trained: bool | None = None, device: str | None = None) -> nn.Module:
    """A model by name, or from a file that carries its own config (meinst publish writes such files).

    Args:
        source: a name as for :func:`get_config_file`, a file of weights, or the URL of one.
        trained: by name, with the trained weights instead of those that training starts from (default False); from a
            file, with its weights (default True) instead of random ones.
        device: where; by default that of the config, or "cpu" where there is no GPU.

    Returns:
        The model; from a file in evaluation mode, by name in training mode, as Detectron2 has it.

    Raises:
        OSError: a file is missing, or a download failed.
        ValueError: an unknown name, a file that carries no config or is not what the hash in its name says.
    """
    source = os.fspath(source)
    if "://" in source or source.endswith(WEIGHT_SUFFIXES) or os.path.isfile(source):
        path = _local(source)
        return _from_content(path, read_checkpoint(path), trained is not False, device)
    cfg = get_config(source, bool(trained))
    if isinstance(cfg, CfgNode):
        model, weights = _build(cfg, device), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model), cfg.train.init_checkpoint
        model.to(device or (cfg.train.device if torch.cuda.is_available() else "cpu"))
    MEInstCheckpointer(model).load(weights)
    return model


def get_info(source: str | os.PathLike[str]) -> dict[str, Any]:
    """What a published file or URL says about itself: name, class_names, config (text), metrics, versions."""
    path = _local(os.fspath(source))
    return info_of(read_checkpoint(path, mmap=True))


def _local(source: str) -> str:
    if "://" in source:
        return fetch(source)
    if os.path.isfile(source):
        require_hash(source)
    return source


def _from_content(path: str, content: dict[str, Any], trained: bool, device: str | None) -> nn.Module:
    about = info_of(content)
    if "config" not in about:
        raise ValueError(f"{path} carries no config: publish it with meinst publish, or load it through MODEL.WEIGHTS")
    cfg = config_from_text(about["config"], f"the config in {path}")
    cfg.MODEL.MEINST.COMPONENTS = ""  # the file's word must not make this machine open other files
    model = _build(cfg, device)
    if trained:
        state = content["model"]
        settle_names(state)
        require_same_tensors(model, state, path)
        model.load_state_dict(state)
    return model.eval()


def _build(cfg: CfgNode, device: str | None) -> nn.Module:
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if device is not None:
        cfg.MODEL.DEVICE = device
    return build_model(cfg)
