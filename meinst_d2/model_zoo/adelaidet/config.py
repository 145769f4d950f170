"""A config of the published implementation as one of ours: its keys and defaults, and what they become here."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import get_cfg
from fvcore.common.config import CfgNode as SafeCfgNode

from meinst_d2.config_file import value_of

MEINST = "MODEL.MEInst."
KEPT_MODEL_KEYS = ("WEIGHTS", "DEVICE", "PIXEL_MEAN", "PIXEL_STD", "BACKBONE", "RESNETS", "FPN")
"""The keys of ``MODEL`` that Detectron2 has and MEInst uses."""

NAMES = {
    "MODEL.META_ARCHITECTURE": ("OneStageDetector", "MEInstDetector"),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("MEInst", "MEInstFCOS"),
    "MODEL.BACKBONE.NAME": ("build_fcos_resnet_fpn_backbone", "build_meinst_resnet_fpn_backbone"),
}
"""What an MEInst of theirs is made of, and the same here."""

MUST_BE = {"MODEL.BACKBONE.ANTI_ALIAS": False, "MODEL.RESNETS.DEFORM_INTERVAL": 1, "VERSION": 2}
"""Keys for which there is one value here."""

TRANSLATED = {*NAMES, "MODEL.MASK_ON", "MODEL.FCOS.TOP_LEVELS", "INPUT.HFLIP_TRAIN", "VERSION"}
"""Keys outside of ``MODEL.MEInst`` that are dealt with one by one."""

DROPPED = {
    "TEST.DETECTIONS_PER_IMAGE": "MODEL.MEInst.POST_NMS_TOPK_TEST is the limit",
    "INPUT.RANDOM_FLIP": "INPUT.HFLIP_TRAIN decides",
    "INPUT.IS_ROTATE": "images are not rotated in training",
    "INPUT.CROP.CROP_INSTANCE": "crops are Detectron2's",
    "SOLVER.AMP.ENABLED": "it would round predictions too; to train with it, set MODEL.MEINST.PRECISION",
}
"""Keys that MEInst would seem to read, and why they are not kept."""

BASE = {"MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"], "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"]}
"""What their base config says, for a file that stands without it."""

DEFAULTS: dict[str, Any] = {"NUM_CLASSES": 80, "MASK_ON": True, "IOU_THRESHOLDS": [0.5], "IOU_LABELS": [0, 1]}
# Levels, and the sizes of the objects that they learn.
DEFAULTS |= {"IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"], "FPN_STRIDES": [8, 16, 32, 64, 128], "TOP_LEVELS": 2}
DEFAULTS |= {"SIZES_OF_INTEREST": [64, 128, 256, 512], "CENTER_SAMPLE": True, "POS_RADIUS": 1.5}
# What is kept of the predictions.
DEFAULTS |= {"INFERENCE_TH_TRAIN": 0.05, "INFERENCE_TH_TEST": 0.05, "NMS_TH": 0.6, "THRESH_WITH_CTR": False}
DEFAULTS |= {"PRE_NMS_TOPK_TRAIN": 1000, "PRE_NMS_TOPK_TEST": 1000}
DEFAULTS |= {"POST_NMS_TOPK_TRAIN": 100, "POST_NMS_TOPK_TEST": 100}
# The head.
DEFAULTS |= {"NUM_CLS_CONVS": 4, "NUM_BOX_CONVS": 4, "NUM_SHARE_CONVS": 0, "NUM_MASK_CONVS": 4, "NORM": "GN"}
DEFAULTS |= {"USE_SCALE": True, "USE_RELU": True, "USE_GCN_IN_MASK": False, "GCN_KERNEL_SIZE": 9, "PRIOR_PROB": 0.01}
DEFAULTS |= {"USE_DEFORMABLE": False, "LAST_DEFORMABLE": False, "TYPE_DEFORMABLE": "DCNv1"}
# The losses.
DEFAULTS |= {"LOSS_ALPHA": 0.25, "LOSS_GAMMA": 2.0, "LOC_LOSS_TYPE": "giou"}
DEFAULTS |= {"MASK_LOSS_TYPE": "mse", "LOSS_ON_MASK": False}
# The encoding of masks.
DEFAULTS |= {"AGNOSTIC": True, "WHITEN": True, "SIGMOID": True, "DIM_MASK": 60, "MASK_SIZE": 28}
DEFAULTS |= {"FLAG_PARAMETERS": False, "PATH_COMPONENTS": "datasets/coco/components/coco_2017_train_class_agnosticTrue"}
DEFAULTS["PATH_COMPONENTS"] += "_whitenTrue_sigmoidTrue_60.npz"

SAME = ("NUM_CLASSES", "IN_FEATURES", "PRIOR_PROB", "USE_SCALE", "SIZES_OF_INTEREST", "WHITEN", "SIGMOID", "DIM_MASK")
SAME += ("MASK_SIZE", "NUM_CLS_CONVS", "NUM_BOX_CONVS", "NUM_SHARE_CONVS", "NUM_MASK_CONVS", "PRE_NMS_TOPK_TEST")
RENAMED = {name: name for name in SAME} | {"INFERENCE_TH_TEST": "SCORE_THRESH_TEST", "NMS_TH": "NMS_THRESH_TEST"}
RENAMED |= {"THRESH_WITH_CTR": "THRESH_WITH_CENTERNESS", "CENTER_SAMPLE": "CENTER_SAMPLING"}
RENAMED |= {"POS_RADIUS": "CENTER_SAMPLING_RADIUS", "LOC_LOSS_TYPE": "BOX_LOSS_TYPE"}
RENAMED |= {"LOSS_ALPHA": "FOCAL_LOSS_ALPHA", "LOSS_GAMMA": "FOCAL_LOSS_GAMMA", "GCN_KERNEL_SIZE": "LARGE_KERNEL_SIZE"}
"""Keys whose value is taken over, and their names here."""

NO_EFFECT = {
    "INFERENCE_TH_TRAIN": "their code predicts with the TEST threshold only",
    **dict.fromkeys(("PRE_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TRAIN"), "their code predicts with the TEST limit only"),
    "TOP_LEVELS": "their code reads MODEL.FCOS.TOP_LEVELS",
    "USE_RELU": "their code always rectifies the box distances",
    "MASK_ON": "their model always has the mask branch",
    **dict.fromkeys(("IOU_THRESHOLDS", "IOU_LABELS"), "their code uses the best match only"),
    **dict.fromkeys(("PATH_COMPONENTS", "FLAG_PARAMETERS"), "the weights carry the components"),
}
"""Keys that change nothing, and why."""

FIXED: dict[str, Any] = {"PRECISION": "float32", "CHANNELS_LAST": "auto", "ENCODER": "PCAEncoder"}
FIXED |= {"SIGMOID_CLAMP": [0.01, 0.05], "COMPONENTS": "", "COMPONENTS_CONFLICT": "stop"}
FIXED |= {"MASK_LOSS_TYPE": "l2", "MASK_LOSS_WEIGHTS": "uniform", "MASK_PASTE_BOX": "clipped", "MASK_OUTPUT": "bitmask"}
FIXED |= {f"LOSS_WEIGHT_{loss}": 1.0 for loss in ("CLS", "BOX", "CENTERNESS", "MASK")}
"""What every published model does, under our keys."""

NORMS = {"GN": "GN", "NaiveGN": "GN", "none": "none"}
BOX_LOSSES = ("giou", "iou", "linear_iou")
DEFORMABLE = {"DCNv1": False, "DCNv2": True}


@dataclass(frozen=True)
class TranslatedConfig:
    """Their config as ours."""

    keys: dict[str, Any]  # nested: those that their file sets, and those whose default here is another
    strides: tuple[int, ...]  # of the feature maps, as their file has them
    notes: list[str]  # a sentence about everything that was dropped, assumed or does not mean what it seems to


def translate_config(content: Mapping[str, Any]) -> TranslatedConfig:
    """Turn what their file holds, with its ``_BASE_``, into a config of ours.

    Raises:
        ValueError: a value has no counterpart here, or a key of ``MODEL.MEInst`` is unknown.
    """
    given = dict(_leaves(content))
    _require_values(given)
    theirs = _complete({key: value for key, value in given.items() if key.startswith(MEINST)})
    ours, notes = translate(theirs, {key.removeprefix(MEINST) for key in given})
    kept, dropped = _sort_out(given)
    result = _checked(kept) | {f"MODEL.MEINST.{key}": value for key, value in ours.items()}
    result["MODEL.MEINST.TOP_LEVELS"] = given.get("MODEL.FCOS.TOP_LEVELS", 2)
    result["TEST.DETECTIONS_PER_IMAGE"] = max(theirs["POST_NMS_TOPK_TEST"], 0)
    result["INPUT.RANDOM_FLIP"] = "horizontal" if given.get("INPUT.HFLIP_TRAIN", True) else "none"
    result |= {"MODEL.MASK_ON": True, "VERSION": 2} | {key: ours for key, (_, ours) in NAMES.items()}
    if not given.get("MODEL.MASK_ON", True):
        notes.append("MODEL.MASK_ON False has no effect: their model always has the mask branch")
    for key, value in BASE.items():
        result.setdefault(key, value)
    notes += [f"{key} is not given: taken from their base config" for key in (*NAMES, *BASE) if key not in given]
    if result.get("MODEL.DEVICE") != "cpu" and not torch.cuda.is_available():
        result["MODEL.DEVICE"] = "cpu"
        notes.append("MODEL.DEVICE is cpu: torch sees no GPU here")
    notes += [f"dropped {name}: {reason}" for name, reason in dropped.items()]
    return TranslatedConfig(_nested(result), tuple(theirs["FPN_STRIDES"]), notes)


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _require_values(given: Mapping[str, Any]) -> None:
    if any(key.startswith("MODEL.MEINST.") for key in given):
        raise ValueError("the config has MODEL.MEINST, which is this project's: it needs no import")
    if given.get("MODEL.MEInst") is not None:
        raise ValueError(f"MODEL.MEInst = {given['MODEL.MEInst']!r} must hold keys")
    for key, (theirs, _) in NAMES.items():
        if given.get(key, theirs) != theirs:
            raise ValueError(f"{key} {given[key]!r} cannot be imported: MEInst is published with {theirs}")
    for key, value in MUST_BE.items():
        if given.get(key, value) != value:
            raise ValueError(f"{key} {given[key]!r} has no counterpart here: only {value} can be imported")


def _complete(given: Mapping[str, Any]) -> dict[str, Any]:
    """Their ``MODEL.MEInst``, with defaults for what is not given."""
    node = SafeCfgNode(copy.deepcopy(DEFAULTS))
    for key, value in given.items():
        name = key.removeprefix(MEINST)
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, 1)
            raise ValueError(f"{key} is unknown" + (f": did you mean {MEINST}{near[0]}?" if near else ""))
        try:
            node.merge_from_list([name, value])
        except ValueError as error:
            kind = type(DEFAULTS[name]).__name__
            raise ValueError(f"{key} = {value!r} must be of type {kind}, like {DEFAULTS[name]!r}") from error
    return dict(node)


def _sort_out(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The keys that mean the same here, and the names of keys or whole nodes that are dropped, with the reason."""
    known = dict(_leaves(get_cfg()))
    kept, dropped = {}, {}
    for key, value in given.items():
        parts = key.split(".")
        node = ".".join(parts[:2]) if parts[0] == "MODEL" else parts[0]
        if key in TRANSLATED or node == "MODEL.MEInst":
            continue
        if key in DROPPED:
            dropped[key] = DROPPED[key]
        elif parts[0] == "MODEL" and parts[1:2] and parts[1] not in KEPT_MODEL_KEYS:
            used = [name.removeprefix(node + ".") for name in TRANSLATED if name.startswith(node + ".")]
            dropped[node + (f" but for {', '.join(used)}" if used else "")] = "MEInst does not read it"
        elif key in known:
            kept[key] = value
        else:
            known_node = any(name.startswith(node + ".") for name in known)
            dropped[key if known_node else node] = "MEInst does not read it"
    return kept, dropped


def _checked(kept: Mapping[str, Any]) -> dict[str, Any]:
    """The values as Detectron2 reads them: literals in strings become values."""
    cfg = get_cfg()
    for key, value in kept.items():
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{key} = {value!r} does not fit Detectron2's config: {reason}") from error
    return {key: value_of(cfg, key) for key in kept}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return nested


def translate(theirs: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Their ``MODEL.MEInst`` as our ``MODEL.MEINST``.

    Args:
        theirs: every key of :data:`DEFAULTS`.
        given: the keys that their file sets.

    Returns:
        Our keys, and a sentence about every value that does not mean what it seems to.

    Raises:
        ValueError: their code cannot run with a value, and so neither can ours.
    """
    _refuse(theirs)
    ours = FIXED | {name: theirs[key] for key, name in RENAMED.items()}
    ours["NORM"] = NORMS.get(theirs["NORM"], "none")
    ours["MASK_REPRESENTATION"] = "implicit" if theirs["LOSS_ON_MASK"] else "explicit"
    ours["MASK_PREDICTOR"] = "large_kernel" if theirs["USE_GCN_IN_MASK"] else "conv"
    ours["DEFORM_CONV"], ours["DEFORM_MODULATED"] = "none", False
    if theirs["USE_DEFORMABLE"]:
        ours["DEFORM_CONV"] = "last" if theirs["LAST_DEFORMABLE"] else "all"
        ours["DEFORM_MODULATED"] = DEFORMABLE[theirs["TYPE_DEFORMABLE"]]

    notes = [f"MODEL.MEInst.{key} has no effect: {reason}" for key, reason in NO_EFFECT.items() if key in given]
    if theirs["NORM"] not in NORMS:
        notes.append(f"MODEL.MEInst.NORM {theirs['NORM']!r} means no normalisation, as in their code")
    if theirs["LAST_DEFORMABLE"] and not theirs["USE_DEFORMABLE"]:
        notes.append("MODEL.MEInst.LAST_DEFORMABLE has no effect: MODEL.MEInst.USE_DEFORMABLE is False")
    if theirs["LOSS_ON_MASK"] and "MASK_LOSS_TYPE" in given:
        notes.append("MODEL.MEInst.MASK_LOSS_TYPE has no effect: MODEL.MEInst.LOSS_ON_MASK is True")
    if not theirs["WHITEN"]:
        notes.append("MODEL.MEInst.WHITEN False stops their code when it decodes; here it decodes without whitening")
    return ours, notes


def _refuse(theirs: Mapping[str, Any]) -> None:
    """Raise a ValueError for a value that their code cannot run with."""
    kind, loss, levels = theirs["TYPE_DEFORMABLE"], theirs["MASK_LOSS_TYPE"], theirs["IN_FEATURES"]
    unknown = "was never implemented{}: no weights can belong to it"
    for wrong, problem in (
        (not theirs["AGNOSTIC"], "AGNOSTIC False " + unknown.format("")),
        (loss != "mse" and not theirs["LOSS_ON_MASK"], f"MASK_LOSS_TYPE {loss!r} " + unknown.format(" (only 'mse')")),
        (
            theirs["USE_DEFORMABLE"] and kind not in DEFORMABLE,
            f"TYPE_DEFORMABLE {kind!r} is none of {', '.join(DEFORMABLE)}: no weights can belong to it",
        ),
        (
            theirs["LOC_LOSS_TYPE"] not in BOX_LOSSES,
            f"LOC_LOSS_TYPE {theirs['LOC_LOSS_TYPE']!r} is none of {', '.join(BOX_LOSSES)}",
        ),
        (
            len(theirs["FPN_STRIDES"]) != len(levels),
            f"FPN_STRIDES has {len(theirs['FPN_STRIDES'])} values for the {len(levels)} feature maps of "
            "MODEL.MEInst.IN_FEATURES: give one each",
        ),
    ):
        if wrong:
            raise ValueError(f"{MEINST}{problem}")
