"""A trained model with what it takes to use it: from a config and weights, or from either where that says enough."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import Tensor, nn

from meinst_d2 import add_meinst_config
from meinst_d2.checkpoint.checkpointer import carried_components, info_of
from meinst_d2.checkpoint.compatibility import CLASS_LAYER
from meinst_d2.checkpoint.download import fetch, require_hash
from meinst_d2.checkpoint.readers import read_checkpoint, weights_to_use
from meinst_d2.config_file import merge_config_file, merge_overrides
from meinst_d2.model_zoo.entries import ENTRIES
from meinst_d2.model_zoo.verify import config_from_text, require_same_tensors
from meinst_d2.model_zoo.zoo import get_checkpoint_url, get_config_file
from meinst_d2.modeling.published_names import settle_names

FINAL_WEIGHTS = "model_final.pth"
RUN_CONFIG = "config.yaml"
ENCODER_KEYS = {"encoder": "ENCODER", "sigmoid": "SIGMOID", "whiten": "WHITEN"}
"""What a checkpoint says about its encoding, and the keys of MODEL.MEINST that have to agree."""


@dataclass(frozen=True)
class TrainedModel:
    """A model that can be shown an image.

    Attributes:
        model: in evaluation mode, on its device.
        resize: what brings an image to the size that the network sees.
        image_format: "BGR" or "RGB", the order of the channels that it learned.
        class_names: K names.
        weights: where they are from.
        notes: sentences that the user should read.
    """

    model: nn.Module
    resize: T.Augmentation
    image_format: str
    class_names: list[str]
    weights: str
    notes: list[str] = field(default_factory=list)


def load_trained(
    config_file: str | None = None, weights: str | None = None, overrides: Sequence[str] = (), device: str | None = None
) -> TrainedModel:
    """A trained model.

    The number of classes and the form of the masks' components are those of the weights, and need not be set.

    Args:
        config_file: a path, or a name as for :func:`~meinst_d2.model_zoo.get_config_file`. None for weights that carry
            their config (meinst publish and meinst import write such files), or that lie beside
            the ``config.yaml`` of their run.
        weights: a file or a URL. None for ``MODEL.WEIGHTS`` of the overrides, the ``model_final.pth`` beside the
            config, the trained model of the name, or ``MODEL.WEIGHTS`` of the config: the first that there is.
        overrides: KEY VALUE pairs for the config; KEY=VALUE for a LazyConfig.
        device: where; by default that of the config, or "cpu" where there is no GPU.

    Raises:
        OSError: a file is missing, or a download failed.
        ValueError: the weights are not those of a trained model, or not of this config.
    """
    if config_file is None and not weights:
        raise ValueError("no model: give --config-file, --weights or both")
    file = None if config_file is None else _find_config(config_file)
    if file is not None and file.endswith(".py"):
        return _load_lazy(file, weights, overrides, device)
    weights = weights or _weights_of(file, config_file, overrides)
    content, path = _read(weights)
    state, about = content["model"], info_of(content)
    cfg = _read_config(file) if file is not None else _config_of(path, about)
    _fit_config(cfg, state, about, path)
    merge_overrides(cfg, overrides)
    cfg.MODEL.WEIGHTS = ""  # they are read already
    notes: list[str] = []
    cfg.MODEL.DEVICE = _device(device, cfg.MODEL.DEVICE, notes)
    model = build_model(cfg)
    _fill(model, state, path)
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    names = _class_names(cfg.MODEL.MEINST.NUM_CLASSES, about, cfg.DATASETS.TRAIN, notes)
    return TrainedModel(model.eval(), resize, cfg.INPUT.FORMAT, names, path, notes)


def _load_lazy(file: str, weights: str | None, overrides: Sequence[str], device: str | None) -> TrainedModel:
    cfg: DictConfig = LazyConfig.apply_overrides(LazyConfig.load(file), list(overrides))
    weights = weights or _weights_of(file, None, ()) or cfg.train.init_checkpoint
    content, path = _read(weights)
    about = info_of(content)
    notes: list[str] = []
    model = instantiate(cfg.model).to(_device(device, cfg.train.device, notes))
    _fill(model, content["model"], path)
    mapper = cfg.dataloader.test.mapper
    resize = T.AugmentationList([instantiate(augmentation) for augmentation in mapper.augmentations])
    names = _class_names(model.proposal_generator.head.cls_logits.out_channels, about, (), notes)
    return TrainedModel(model.eval(), resize, mapper.image_format, names, path, notes)


def _find_config(config_file: str) -> str:
    return config_file if os.path.isfile(config_file) else get_config_file(config_file)


def _weights_of(file: str | None, name: str | None, overrides: Sequence[str]) -> str:
    """The weights that belong to a config where none are named."""
    if "MODEL.WEIGHTS" in overrides[::2]:
        return overrides[list(overrides).index("MODEL.WEIGHTS") + 1]
    beside = Path(file or "").parent / FINAL_WEIGHTS
    if file is not None and beside.is_file():
        return str(beside)
    if name is not None and name.removesuffix(".yaml") in ENTRIES:
        return get_checkpoint_url(name)
    weights: str = "" if file is None or file.endswith(".py") else _read_config(file).MODEL.WEIGHTS
    if not weights or "ImageNetPretrained" in weights:
        raise ValueError(f"{name or file} names no trained weights: give --weights model.pth")
    return weights


def _read(weights: str) -> tuple[dict[str, Any], str]:
    """A checkpoint whose weights have our names, and its local path."""
    if "://" in weights:
        path = fetch(weights)
    elif os.path.isfile(weights):
        path = weights
        require_hash(path)
    else:
        raise FileNotFoundError(f"there is no file of weights {weights}: give --weights FILE or a URL")
    content = read_checkpoint(path)
    state = dict(weights_to_use(content))
    state = {name: torch.as_tensor(value) for name, value in state.items()}
    settle_names(state)
    if not any(name.startswith(CLASS_LAYER.prefixes) for name in state):
        raise ValueError(f"{path} holds no trained detector (it has no class layer): give the weights of one")
    return {**content, "model": state}, path


def _read_config(file: str) -> CfgNode:
    cfg = get_cfg()
    add_meinst_config(cfg)
    merge_config_file(cfg, file)
    return cfg


def _config_of(path: str, about: Mapping[str, Any]) -> CfgNode:
    """The config that weights carry, or that of the run whose folder they are in."""
    beside = Path(path).parent / RUN_CONFIG
    if "config" in about:
        return config_from_text(about["config"], f"the config in {path}")
    if beside.is_file():
        return _read_config(str(beside))
    raise ValueError(
        f"{path} carries no config, and there is no {RUN_CONFIG} beside it: give --config-file, or publish it with "
        "meinst publish"
    )


def _fit_config(cfg: CfgNode, state: Mapping[str, Tensor], about: Mapping[str, Any], path: str) -> None:
    """Set what the weights leave no choice about: the number of classes, and how masks are encoded."""
    meinst = cfg.MODEL.MEINST
    if "head.cls_score.bias" in state:  # RetinaNet: a value for every class and anchor
        boxes = state.get("head.bbox_pred.bias")
        anchors = 0 if boxes is None else boxes.numel() // 4
        num_classes = state["head.cls_score.bias"].numel() // max(anchors, 1)
    else:
        num_classes = next((value.numel() for name, value in state.items() if name.endswith("head.cls_logits.bias")), 0)
    if num_classes == 0:
        raise ValueError(f"{path} does not say how many classes it knows: it lacks a bias of the class layer")
    meinst.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    components = carried_components(state, path)
    if components is not None:
        meinst.DIM_MASK, meinst.MASK_SIZE = components.shape[-2], round(components.shape[-1] ** 0.5)
        meinst.COMPONENTS = ""  # the weights have them
        for key, name in ENCODER_KEYS.items():
            meinst[name] = about.get(key, meinst[name])


def _device(wanted: str | None, configured: str, notes: list[str]) -> str:
    device = wanted or configured
    if device.startswith("cuda") and not torch.cuda.is_available():
        if wanted is not None:
            raise ValueError(f"--device {wanted}: torch sees no GPU, choose cpu")
        notes.append("torch sees no GPU: running on the CPU")
        return "cpu"
    return device


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Load weights that must be those of the model; components that it has already may be missing."""
    own = model.state_dict()
    encoder = getattr(getattr(model, "proposal_generator", model), "mask_encoder", None)
    kept = {name: own[name] for name in own if "mask_encoder." in name and name not in state}
    if encoder is not None and not encoder.is_fitted:
        kept = {}
    complete = {**state, **kept}
    require_same_tensors(model, complete, path)
    model.load_state_dict(complete)
    if encoder is not None and not encoder.is_fitted:
        raise ValueError(
            f"{path} carries no mask components: add the override MODEL.MEINST.COMPONENTS FILE.npz, with the "
            "components that the model was trained with"
        )


def _class_names(num_classes: int, about: Mapping[str, Any], datasets: Sequence[str], notes: list[str]) -> list[str]:
    """Those that the checkpoint says, those of a dataset that is registered, or numbers."""
    known = [about.get("class_names")]
    known += [MetadataCatalog.get(name).get("thing_classes") for name in datasets[:1]]
    for names in known:
        if names is not None and len(names) == num_classes:
            return [str(name) for name in names]
    notes.append(f"the weights do not say what their {num_classes} classes are called: they are numbered")
    return [f"class {i}" for i in range(num_classes)]
