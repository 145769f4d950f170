"""What is exported: a model, and what a program needs to know to use it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from torch import nn

from meinst_d2 import add_meinst_config, model_zoo
from meinst_d2.checkpoint import MEInstCheckpointer, info_of
from meinst_d2.model_check import config_from_text
from meinst_d2.modeling.meta_arch import MEInstDetector
from meinst_d2.weights import read_checkpoint


@dataclass(frozen=True)
class ExportSource:
    """A model with its metadata.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        metadata: texts by name: class_names (JSON list), mask_size, input_format, size_divisibility, min_size_test,
            max_size_test, score_threshold, paste_box.
        notes: sentences that the user should read.
    """

    model: MEInstDetector
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def load_source(
    config_file: str | None, weights: str | os.PathLike[str] | None, overrides: Sequence[str] = ()
) -> ExportSource:
    """Read a model.

    Args:
        config_file: a path, or a name as for :func:`meinst_d2.model_zoo.get_config_file`; None for a file of weights
            that carries its config (tools/publish_model.py writes such files).
        weights: a file or URL; None for ``MODEL.WEIGHTS`` of the config.
        overrides: KEY VALUE pairs for the config.

    Raises:
        OSError: a file is missing.
        ValueError: neither config nor weights, or a model that cannot be exported.
    """
    about = model_zoo.get_info(weights) if weights and "://" in str(weights) else _about(weights)
    if config_file is not None:
        cfg = get_cfg()
        add_meinst_config(cfg)
        cfg.merge_from_file(config_file if os.path.isfile(config_file) else model_zoo.get_config_file(config_file))
        cfg.merge_from_list(list(overrides))
        if weights:
            cfg.MODEL.WEIGHTS = os.fspath(weights)
        if weights and cfg.MODEL.MEINST.COMPONENTS and not os.path.isfile(cfg.MODEL.MEINST.COMPONENTS):
            cfg.MODEL.MEINST.COMPONENTS = ""  # the weights carry them
        model = _build(cfg)
    elif weights:
        if overrides:
            raise ValueError(f"{' '.join(overrides)}: give --config-file to change keys of the config")
        model = model_zoo.get(weights, device="cpu")
        cfg = config_from_text(about["config"])
    else:
        raise ValueError("nothing to export: give --config-file, --weights or both")
    return make_source(model, cfg, about.get("class_names"))


def make_source(model: nn.Module, cfg: CfgNode, class_names: Sequence[str] | None = None) -> ExportSource:
    """Metadata of a model from its config.

    Args:
        model: changed: evaluation mode, float32.
        cfg: its config.
        class_names: by default those of ``DATASETS.TRAIN``, or else numbers.

    Raises:
        ValueError: the model is not of a kind that can be exported.
    """
    if not isinstance(model, MEInstDetector):
        raise ValueError(
            f"{type(model).__name__} cannot be exported: only MODEL.META_ARCHITECTURE MEInstDetector can; run others "
            "with Detectron2's DefaultPredictor"
        )
    notes = []
    if model.precision != "float32":
        notes.append(f"the model computes in {model.precision}; the exported one computes in float32")
        model.precision = "float32"
    encoder = model.proposal_generator.mask_encoder
    if encoder is not None and not encoder.is_fitted:
        raise ValueError("the model has no mask components: give --weights that hold them, or MODEL.MEINST.COMPONENTS")
    num_classes = cfg.MODEL.MEINST.NUM_CLASSES
    if class_names is None and cfg.DATASETS.TRAIN:
        class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
    if class_names is None or len(class_names) != num_classes:
        notes.append(f"the names of the {num_classes} classes are not known: they are called by their numbers")
        class_names = [str(i) for i in range(num_classes)]
    metadata = {
        "class_names": json.dumps(list(class_names)),
        "mask_size": str(encoder.mask_size if encoder is not None else 0),
        "input_format": cfg.INPUT.FORMAT,
        "size_divisibility": str(max(model.backbone.size_divisibility, 1)),
        "min_size_test": str(cfg.INPUT.MIN_SIZE_TEST),
        "max_size_test": str(cfg.INPUT.MAX_SIZE_TEST),
        "score_threshold": str(cfg.MODEL.MEINST.SCORE_THRESH_TEST),
        "paste_box": model.mask_paste_box,
    }
    return ExportSource(model.float().cpu().eval(), metadata, tuple(notes))


def _build(cfg: CfgNode) -> nn.Module:
    from detectron2.modeling import build_model

    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    MEInstCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def _about(weights: str | os.PathLike[str] | None) -> dict[str, Any]:
    if weights is None or not str(weights).endswith((".pth", ".pyth")):
        return {}
    return info_of(read_checkpoint(os.fspath(weights), mmap=True))
