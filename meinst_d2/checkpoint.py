"""Checkpoints: published names, reading without running code, writing without half-written files."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from meinst_d2 import __version__
from meinst_d2.files import atomic_path
from meinst_d2.prerequisites import require_detectron2

require_detectron2()

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402

PUBLISHED_NAMES = {
    "MEInst_head.ctrness.": "head.centerness.",
    "MEInst_head.": "head.",
    "mask_encoding.": "mask_encoder.",
}
"""Prefixes below ``proposal_generator.`` in published checkpoints, and ours; the first match counts."""


def rename_published_keys(state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
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


ALLOWED_GLOBALS = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
"""What pickles of numpy arrays and plain containers ask for; NumPy 2 renamed numpy.core."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load_array_pickle(path: str | os.PathLike[str]) -> Any:
    """Read a .pkl of numpy arrays and plain containers (ImageNet and Detectron2 model-zoo weights), and nothing else.

    Raises:
        ValueError: the file is no pickle, or needs more than arrays, which could run code.
    """
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, KeyError) as error:
            raise ValueError(
                f"{path} is refused: a .pkl of weights may hold numpy arrays and plain containers only ({error})"
            ) from error


def load_tensor_file(path: str | os.PathLike[str], mmap: bool = False) -> Any:
    """Read a .pth of tensors and plain containers, on the CPU, and nothing else.

    Args:
        path: the file.
        mmap: map the tensors instead of reading them.

    Raises:
        ValueError: the file is truncated, or needs more than tensors, which could run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is refused: a checkpoint may hold tensors and plain containers only, and must be whole ({reason})"
        ) from error


class MEInstCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, reading safely and writing atomically.

    A checkpoint appears under its name only once it is complete; ``last_checkpoint`` changes after that.
    """

    def _load_file(self, filename: str) -> Any:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        data = load_array_pickle(filename)
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        blobs = data.get("blobs", data)
        weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        return load_tensor_file(f)

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_path(path) as temporary:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, temporary)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_path(os.path.join(self.save_dir, "last_checkpoint")) as temporary:
            temporary.write_text(last_filename_basename)


@dataclass
class CheckpointInfo:
    """What a checkpoint says about itself besides its weights; stored under "meinst".

    Attributes:
        content: plain values by name.
    """

    content: dict[str, Any]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CheckpointInfo:
        """The masks' encoding and the class names."""
        content: dict[str, Any] = {"version": __version__}
        if cfg.DATASETS.TRAIN:
            content["class_names"] = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
        if cfg.MODEL.MASK_ON:
            meinst = cfg.MODEL.MEINST
            content |= {"encoder": meinst.ENCODER, "sigmoid": meinst.SIGMOID, "whiten": meinst.WHITEN}
        return cls(content)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpointer."""
        return self.content

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The config of this run says more than the checkpoint's, so nothing is taken over."""
