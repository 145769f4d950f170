"""What files of weights hold, whoever wrote them, and which layers may differ from the model's."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch

FOREIGN = {".pkl": ("blobs", "_momentum", "Caffe2"), ".pyth": ("model_state", "num_batches_tracked", "pycls")}
"""By suffix: where files of other projects keep weights, how the names end of what are not, and the project."""


class Layer(NamedTuple):
    """Tensors that mean something only together."""

    name: str  # for people
    prefixes: tuple[str, ...]  # of the tensors' names
    remedy: str  # what lets the layer be re-initialized


CLASS_LAYER = Layer(
    "class layer",
    (
        "proposal_generator.head.cls_logits.",
        "head.cls_score.",
        "proposal_generator.refinement.cls_score.",
        "refinement.cls_score.",
    ),
    "evaluate with the classes of the weights, or train on the new classes first (the class layer is re-initialized)",
)
MASK_LAYER = Layer(
    "mask predictor",
    ("proposal_generator.head.mask_pred.", "proposal_generator.mask_encoder.", "head.mask_pred.", "mask_encoder."),
    "to re-initialize the mask predictor with the components of MODEL.MEINST.COMPONENTS, train with "
    "MODEL.MEINST.COMPONENTS_CONFLICT file",
)
REFINEMENT = ("proposal_generator.refinement.", "refinement.")
REFINED_CLASSES = tuple(f"{prefix}{part}." for prefix in REFINEMENT for part in ("classifier", "cls_score"))
REFINED_DETAILS = tuple(f"{prefix}detail." for prefix in REFINEMENT)
CHECKED_PREFIXES = ("proposal_generator.", "head.", "mask_encoder.", "refinement.")
"""Where shapes must fit: all but the backbone. The names without a generator are those of MEInst on RetinaNet."""


def weights_by_name(content: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file of weights holds, in one form.

    Returns:
        ``model``, tensors by name, and what else the file holds. A bare state dict becomes ``model``. Of a run with
        averaged weights ``model`` is those, and ``ema`` has the others under ``raw``. Weights of Caffe2 and pycls come
        with ``__author__`` and ``matching_heuristics``, which make Detectron2 match their names.

    Raises:
        ValueError: there are no weights by name.
    """
    bare = not isinstance(content, dict) or "model" not in content
    whole = {"model": content} if bare else dict(content)
    key, other, author = FOREIGN.get(os.path.splitext(path)[1], ("", "", ""))
    if bare and isinstance(content, dict) and (key in content or author == "Caffe2"):
        weights = tensors_by_name(content.get(key, content), path)
        weights = {name: value for name, value in weights.items() if not name.endswith(other)}
        whole = {"model": weights, "__author__": author, "matching_heuristics": True}
    whole["model"] = tensors_by_name(whole["model"], path)
    average = whole.get("ema")
    if isinstance(average, dict) and average:
        if "raw" not in average:  # as earlier versions wrote it
            average = {**average, "raw": whole["model"]}
            whole["model"] = tensors_by_name(average.pop("model", None), path)
        whole["ema"] = {**average, "raw": tensors_by_name(average["raw"], path)}
    return whole


def tensors_by_name(weights: Any, path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Weights as tensors; raises a ValueError where they are something else."""
    if not isinstance(weights, dict):
        raise ValueError(f"{path} holds an object of type {type(weights).__name__} instead of weights by name")
    found = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} is not a checkpoint: a weight has the name {name!r}, which is not a string")
        if isinstance(value, (np.ndarray, np.generic)):
            with suppress(TypeError):  # strings, or numbers that torch does not have
                value = torch.as_tensor(np.asarray(value, value.dtype.newbyteorder("=")))
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{path} is not a checkpoint: {name} is of type {type(value).__name__} instead of a tensor"
            )
        found[name] = value
    return found


def num_classes_of(state: Mapping[str, torch.Tensor]) -> int:
    """How many classes the class layer of weights with our names tells apart; 0 where they have no bias of one."""
    biases = [value for name, value in state.items() if name.endswith(("head.cls_logits.bias", "head.cls_score.bias"))]
    boxes = state.get("head.bbox_pred.bias")  # RetinaNet's, which has a value for every class and anchor
    anchors = 1 if boxes is None else max(boxes.numel() // 4, 1)
    return biases[0].numel() // anchors if biases else 0


def has_part(state: Iterable[str], part: tuple[str, ...]) -> bool:
    """Whether there are weights of :data:`REFINEMENT`, or of a part of it, among those of these names."""
    return any(name.startswith(part) for name in state)


def changed_layers(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[Layer, str]:
    """The layers whose outputs mean something else now, and why, from what two checkpoints say about themselves.

    Args:
        saved, ours: of :class:`~meinst_d2.checkpoint.checkpointer.CheckpointInfo`; what one of them lacks is the same.
    """
    changed = {}
    classes = [list(about["class_names"]) for about in (saved, ours) if about.get("class_names") is not None]
    if len(classes) == 2 and classes[0] != classes[1]:
        changed[CLASS_LAYER] = "the weights were trained on other classes"
    for key in ("encoder", "sigmoid", "whiten"):
        if key in saved and key in ours and saved[key] != ours[key]:
            changed[MASK_LAYER] = f"the weights were trained with MODEL.MEINST.{key.upper()} {saved[key]}"
    return changed


def leave_out(
    state: MutableMapping[str, Any],
    model_state: Mapping[str, Any],
    may_reinitialize: Collection[Layer],
    changed: Mapping[Layer, str],
) -> dict[Layer, str]:
    """Take the layers that do not fit the model out of loaded weights, and say why each was taken out.

    Args:
        state: tensors by our names; changed.
        model_state: the model's.
        may_reinitialize: the layers that may be taken out.
        changed: of these, what is taken out whatever its shape, and why.

    Raises:
        ValueError: a tensor has another shape than the model's, and none of these layers holds it.
    """
    unfit = {
        name: f"{name} has shape {tuple(value.shape)} in the weights and {tuple(model_state[name].shape)} in the model"
        for name, value in state.items()
        if name.startswith(CHECKED_PREFIXES) and name in model_state and value.shape != model_state[name].shape
    }
    left_out = {}
    for layer in may_reinitialize:
        reasons = [reason for name, reason in unfit.items() if name.startswith(layer.prefixes)]
        if reasons or layer in changed:
            left_out[layer] = changed.get(layer) or reasons[0]
            for name in [name for name in state if name.startswith(layer.prefixes)]:
                del state[name]
    remaining = {name: reason for name, reason in unfit.items() if name in state}
    if remaining:
        layers = [layer for layer in (CLASS_LAYER, MASK_LAYER) if any(n.startswith(layer.prefixes) for n in remaining)]
        remedies = [layer.remedy for layer in layers] or ["take the config that the weights were trained with"]
        raise ValueError(f"{', '.join(remaining.values())}: {'; '.join(remedies)}")
    return left_out
