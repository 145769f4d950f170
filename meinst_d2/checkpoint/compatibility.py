"""Starting from weights of another task: which layers may differ, and start anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """Tensors that mean something only together.

    Attributes:
        name: for people.
        prefixes: of the tensors' names.
        remedy: what lets the layer start anew.
    """

    name: str
    prefixes: tuple[str, ...]
    remedy: str


CLASS_LAYER = Layer(
    "class layer",
    ("proposal_generator.head.cls_logits.", "head.cls_score."),
    "evaluate with the classes of the weights, or train on the new classes first (the class layer then starts anew)",
)
MASK_LAYER = Layer(
    "mask predictor",
    ("proposal_generator.head.mask_pred.", "proposal_generator.mask_encoder.", "head.mask_pred.", "mask_encoder."),
    "to start the mask predictor anew with the components of MODEL.MEINST.COMPONENTS, train with "
    "MODEL.MEINST.COMPONENTS_CONFLICT file",
)
CHECKED_PREFIXES = ("proposal_generator.", "head.", "mask_encoder.")
"""Where shapes must fit: all but the backbone. The names without a generator are those of MEInst on RetinaNet."""


def changed_layers(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[Layer, str]:
    """The layers whose outputs mean something else now, and why, from what two checkpoints say about themselves.

    Args:
        saved, ours: the content of a :class:`~meinst_d2.checkpoint.checkpointer.CheckpointInfo`;
            what one of them lacks is the same.
    """
    changed = {}
    their_classes, our_classes = saved.get("class_names"), ours.get("class_names")
    if their_classes is not None and our_classes is not None and list(their_classes) != list(our_classes):
        changed[CLASS_LAYER] = "the weights were trained on other classes"
    for key in ("encoder", "sigmoid", "whiten"):
        if key in saved and key in ours and saved[key] != ours[key]:
            changed[MASK_LAYER] = f"the weights were trained with MODEL.MEINST.{key.upper()} {saved[key]}"
    return changed


def leave_out(
    state: MutableMapping[str, Any],
    model_state: Mapping[str, Any],
    may_start_anew: Collection[Layer],
    changed: Mapping[Layer, str],
) -> dict[Layer, str]:
    """Take out of loaded weights the layers that do not fit the model.

    Args:
        state: tensors by our names; changed.
        model_state: the model's.
        may_start_anew: the layers that may be taken out.
        changed: of these, what is taken out whatever its shape, and why.

    Returns:
        The layers that were taken out, and why.

    Raises:
        ValueError: a tensor has another shape than the model's, and none of these layers holds it.
    """
    unfit = {
        name: f"{name} has shape {tuple(value.shape)} in the weights and {tuple(model_state[name].shape)} in the model"
        for name, value in state.items()
        if name.startswith(CHECKED_PREFIXES) and name in model_state and value.shape != model_state[name].shape
    }
    left_out = {}
    for layer in may_start_anew:
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
