"""Weights of the published implementation under our names, with the mask components."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import torch
from detectron2.config import CfgNode
from torch import Tensor

from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.encoding import load_components
from meinst_d2.modeling.published_names import GENERATOR_PREFIX, settle_names

ENCODER_PREFIX = GENERATOR_PREFIX + "mask_encoder."


def read_published_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read their checkpoint, whole or a bare state dict.

    Returns:
        Tensors by our names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds more than tensors by name.
    """
    state = read_checkpoint(path)["model"]
    state = {name: torch.as_tensor(value) for name, value in state.items()}
    settle_names(state)
    return state


def fill_components(state: MutableMapping[str, Tensor], cfg: CfgNode, weights: object, components: str | None) -> None:
    """Put the components of a file into weights that lack them.

    Args:
        state: by our names; changed.
        cfg: ours.
        weights: where the state is from.
        components: the file (.npz), or None.

    Raises:
        ValueError: there are no components anywhere, they do not fit the config, or the two sources differ.
    """
    carried = {
        key.removeprefix(ENCODER_PREFIX): value for key, value in state.items() if key.startswith(ENCODER_PREFIX)
    }
    fitted = bool(carried) and all(bool(value.any()) for value in carried.values())
    if components is None:
        if not fitted:
            raise ValueError(
                f"{weights} carries no mask components (absent or all zero): add --components FILE.npz with the "
                "components that the model was trained with"
            )
        return
    from_file = _tensors_of_file(components, cfg)
    if fitted and not all(_equal(carried.get(name), value) for name, value in from_file.items()):
        raise ValueError(f"{weights} carries other components than {components}: leave out --components")
    state.update({ENCODER_PREFIX + name: value for name, value in from_file.items()})


def _equal(a: Tensor | None, b: Tensor) -> bool:
    return a is not None and a.shape == b.shape and torch.allclose(a.float(), b, rtol=1e-5, atol=1e-6)


def _tensors_of_file(path: str, cfg: CfgNode) -> dict[str, Tensor]:
    found, meinst = load_components(path), cfg.MODEL.MEINST
    for name, value, key in (
        ("dictionaries", len(found.bases), None),
        ("D", found.basis.dim, "DIM_MASK"),
        ("S", found.basis.mask_size, "MASK_SIZE"),
        ("sigmoid", found.sigmoid, "SIGMOID"),
    ):
        wanted = 1 if key is None else meinst[key]
        if value != wanted:
            raise ValueError(f"the components in {path} have {name} = {value}, the config needs {wanted}: give others")
    return {
        "components": torch.as_tensor(found.basis.components),
        "means": torch.as_tensor(found.basis.mean),
        "explained_variances": torch.as_tensor(found.basis.explained_variance),
    }
