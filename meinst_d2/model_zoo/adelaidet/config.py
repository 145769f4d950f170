"""A config of the published implementation as one of ours."""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import get_cfg
from fvcore.common.config import CfgNode as SafeCfgNode

from meinst_d2.model_zoo.adelaidet.keys import DEFAULTS, translate

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


@dataclass(frozen=True)
class TranslatedConfig:
    """Their config as ours.

    Attributes:
        keys: of our config, nested: those that their file sets, and those whose default here is another.
        strides: of the feature maps, as their file has them.
        notes: a sentence about everything that was dropped, assumed or does not mean what it seems to.
    """

    keys: dict[str, Any]
    strides: tuple[int, ...]
    notes: list[str]


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
    return {key: functools.reduce(getattr, key.split("."), cfg) for key in kept}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return nested
