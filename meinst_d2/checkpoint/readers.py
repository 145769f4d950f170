"""Files of weights: reading without running code from them, by suffix, and writing."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meinst_d2.checkpoint.array_pickle import BROKEN, ArrayUnpickler, plain_arrays, require_modest_pickle
from meinst_d2.checkpoint.tensor_file import require_modest_file


def load_array_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a .pkl of numpy arrays and plain containers (ImageNet and Detectron2 model-zoo weights), and nothing else.

    Raises:
        ValueError: the file is no pickle, or needs more than arrays, which could run code, or more memory than it is
            long.
    """
    with open(path, "rb") as file:
        try:
            require_modest_pickle(file, os.path.getsize(path))
            file.seek(0)
            return plain_arrays(ArrayUnpickler(file, encoding="latin1").load())
        except BROKEN as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{path} is refused: a .pkl of weights may hold numpy arrays and plain containers only ({reason})"
            ) from error


def load_tensor_file(path: str | os.PathLike[str], mmap: bool = False) -> Any:
    """Read a .pth of tensors and plain containers, on the CPU, and nothing else.

    Args:
        path: the file.
        mmap: map the tensors instead of reading them.

    Raises:
        ValueError: the file is truncated, or needs more than tensors, which could run code, or more memory than it is
            long.
    """
    try:
        require_modest_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except (*BROKEN, RuntimeError, OSError, struct.error, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is refused: a checkpoint may hold tensors and plain containers only, and must be whole ({reason})"
        ) from error


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a .safetensors file, on the CPU.

    Returns:
        ``model``, and ``meinst`` where :func:`save_safetensors` wrote it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not whole, or the package safetensors is missing.
    """
    safetensors = _require_safetensors(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
            about = (file.metadata() or {}).get("meinst")
        return {"model": state} | ({} if about is None else {"meinst": json.loads(about)})
    except (safetensors.SafetensorError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{path} is refused: it is no whole .safetensors file ({error})") from error


def save_safetensors(path: str | os.PathLike[str], state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write weights by name, and what JSON can hold beside them."""
    safetensors = _require_safetensors(path)
    from safetensors.torch import save_file

    metadata = {"format": "pt", "meinst": json.dumps(dict(about))}
    try:
        save_file({name: value.contiguous() for name, value in state.items()}, path, metadata)
    except safetensors.SafetensorError as error:
        raise RuntimeError(str(error)) from error


def _require_safetensors(path: str | os.PathLike[str]) -> Any:
    try:
        import safetensors
    except ImportError as error:
        raise ValueError(f"{path} needs the package safetensors: run pip install safetensors") from error
    return safetensors


def read_checkpoint(path: str | os.PathLike[str], mmap: bool = False) -> dict[str, Any]:
    """Read a file of weights as its suffix asks: .pkl, .safetensors, or anything else as a .pth.

    Args:
        path: the file.
        mmap: map the tensors of a .pth instead of reading them, where its format allows.

    Returns:
        ``model``, the weights by name, and whatever else the file holds. A bare state dict becomes ``model``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file could run code, is not whole, or holds no weights by name.
    """
    suffix = os.path.splitext(path)[1]
    if suffix == ".safetensors":
        return load_safetensors(path)
    if suffix == ".pkl":
        content = load_array_pickle(path)
    else:
        content = load_tensor_file(path, mmap=mmap and zipfile.is_zipfile(path))
    require_weights_by_name(content, path)
    whole: dict[str, Any] = content
    if "model" not in content:
        whole = {"model": content["model_state"] if suffix == ".pyth" and "model_state" in content else content}
        require_weights_by_name(whole, path)
    return whole


def weights_to_use(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint that predict: the averaged ones, where it has any."""
    average = checkpoint.get("ema")
    averaged = average.get("model") if isinstance(average, dict) else None  # other tools keep other things there
    weights: dict[str, Any] = averaged if isinstance(averaged, dict) else checkpoint["model"]
    return weights


def require_weights_by_name(content: Any, path: str | os.PathLike[str]) -> None:
    """Raise a ValueError if what was read is no state dict, bare or under "model"; of a bare one only names count.

    Averaged weights under "ema" must be such, too.
    """
    found = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} instead of weights by name")
    for name, value in found.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} is no checkpoint: a weight has the name {name!r}, which is no text")
        if found is not content and not isinstance(value, (Tensor, np.ndarray, np.generic)):
            raise ValueError(f"{path} is no checkpoint: {name} is a {type(value).__name__} instead of a tensor")
    average = content.get("ema") if found is not content else None
    if isinstance(average, dict) and average:
        require_weights_by_name({"model": average.get("model")}, path)
