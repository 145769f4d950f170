"""The names of weights in published checkpoints, and ours."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from torch import Tensor

GENERATOR_PREFIX = "proposal_generator."
PUBLISHED_NAMES = {
    "MEInst_head.ctrness.": "head.centerness.",
    "MEInst_head.": "head.",
    "mask_encoding.": "mask_encoder.",
}
"""Prefixes below ``proposal_generator.`` in published checkpoints, and ours; the first match counts."""


def rename_published_keys(state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any) -> None:
    """A state-dict pre-hook: give published weights our names, in place.

    Args:
        state_dict: what is about to be loaded.
        prefix: of the module that loads it, "proposal_generator." in a detector.
    """
    for key in list(state_dict):
        for theirs, ours in PUBLISHED_NAMES.items():
            if key.startswith(prefix + theirs):
                state_dict[prefix + ours + key[len(prefix + theirs) :]] = state_dict.pop(key)
                break


def settle_names(state_dict: MutableMapping[str, Any]) -> None:
    """Give a detector's weights the names that this project's detectors have, in place.

    Published names become ours, the prefix of a distributed model goes, and so do the pixel statistics that older
    versions of Detectron2 stored: the config has them.
    """
    if state_dict and all(key.startswith("module.") for key in state_dict):
        for key in list(state_dict):
            state_dict[key.removeprefix("module.")] = state_dict.pop(key)
    rename_published_keys(state_dict, GENERATOR_PREFIX)
    for key in ("pixel_mean", "pixel_std"):
        state_dict.pop(key, None)
