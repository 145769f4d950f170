"""Checkpoints: published names, reading without running code, writing without half-written files."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meinst_d2 import __version__, require_detectron2
from meinst_d2.checkpoint.compatibility import Layer, changed_layers, leave_out
from meinst_d2.checkpoint.readers import (
    load_array_pickle,
    load_safetensors,
    load_tensor_file,
    require_weights_by_name,
    weights_to_use,
)
from meinst_d2.checkpoint.resume import TAG, OpenedCheckpoint, open_last_whole
from meinst_d2.files import atomic_path

require_detectron2()

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.utils import comm  # noqa: E402

from meinst_d2.checkpoint.download import fetch  # noqa: E402
from meinst_d2.modeling.published_names import settle_names  # noqa: E402


class MEInstCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, reading safely and writing atomically.

    A checkpoint appears under its name only once it is complete; ``last_checkpoint`` changes after that. Weights whose
    shapes do not fit the proposal generator are an error.

    Attributes:
        may_start_anew: layers that keep what the model was initialised with where the weights do not fit them.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, opened: OpenedCheckpoint | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            model: what to load into and save.
            save_dir: where to save.
            opened: a file that has been read already, and is not read again.
            kwargs: of DetectionCheckpointer.
        """
        super().__init__(model, save_dir, **kwargs)
        self.may_start_anew: Collection[Layer] = ()
        self._resumes_training = False
        self._opened = opened

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As Detectron2's. Of a run with averaged weights those are loaded, unless training goes on from the others."""
        if "://" in path:
            url, _, query = path.partition("?")  # Detectron2's own queries say how to match names
            path = fetch(url) + ("?" + query if query else "")
        self._resumes_training = checkpointables is None and "trainer" in self.checkpointables
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> Any:
        opened, self._opened = self._opened, None
        if opened is not None and str(opened.path) == filename:
            return opened.content
        suffix = os.path.splitext(filename)[1]
        if suffix == ".safetensors":
            return load_safetensors(filename)
        if suffix == ".pkl":
            content = load_array_pickle(filename)
            require_weights_by_name(content, filename)
            require_weights_by_name({"model": content.get("blobs", {})}, filename)
            return self._from_array_pickle(content)
        if suffix == ".pyth":
            content = self._torch_load(filename)
            if "model_state" not in content:
                return content if "model" in content else {"model": content}
            require_weights_by_name({"model": content["model_state"]}, filename)
            weights = {k: v for k, v in content["model_state"].items() if not k.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        return super()._load_file(filename)  # which reads through _torch_load

    def _from_array_pickle(self, data: dict[str, Any]) -> dict[str, Any]:
        if "model" in data and "__author__" in data:
            self.logger.info(f"Reading a file from '{data['__author__']}'")
            return data
        blobs = data.get("blobs", data)
        weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> Any:
        content = load_tensor_file(f)
        require_weights_by_name(content, f)
        return content

    def _load_model(self, checkpoint: Any) -> Any:
        if not self._resumes_training:
            checkpoint["model"] = weights_to_use(checkpoint)
        left_out: dict[Layer, str] = {}
        if not checkpoint.get("matching_heuristics", False):
            state = checkpoint["model"]
            self._convert_ndarray_to_tensor(state)
            settle_names(state)
            ours = self.checkpointables["meinst"].content if "meinst" in self.checkpointables else {}
            changed = changed_layers(info_of(checkpoint), ours)
            left_out = leave_out(state, self.model.state_dict(), self.may_start_anew, changed)
        incompatible = super()._load_model(checkpoint)
        for layer, reason in left_out.items():
            self.logger.warning(f"The {layer.name} starts anew: {reason}.")
            incompatible.missing_keys[:] = [x for x in incompatible.missing_keys if not x.startswith(layer.prefixes)]
        return incompatible

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {path}")
        with atomic_path(path) as temporary:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, temporary)
        self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, model: nn.Module, **extra: Any) -> None:
        """Write the weights of a model, and what this run's checkpoints say about themselves; not a place to resume.

        Args:
            name: of the file, without .pth.
            model: like the one that this checkpointer saves.
            extra: plain values.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        about = {"meinst": self.checkpointables["meinst"].state_dict()} if "meinst" in self.checkpointables else {}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving weights to {path}")
        with atomic_path(path) as temporary:
            torch.save({"model": model.state_dict(), **about, **extra}, temporary)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_path(os.path.join(self.save_dir, TAG)) as temporary:
            temporary.write_text(last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The last checkpoint that is whole, as the main process sees it; all processes call this.

        Raises:
            ValueError: there are some, and none is whole.
        """
        problem, path = "", ""
        if comm.is_main_process():
            try:
                found = self._opened
                if found is None or found.path.parent != Path(self.save_dir):
                    found = self._opened = open_last_whole(Path(self.save_dir))
            except ValueError as error:
                problem = str(error)
            else:
                path = str(found.path) if found else ""
                for reason in found.passed_over if found else ():
                    self.logger.warning(f"Going on from an earlier checkpoint, {path}, because {reason}.")
        problem, path = comm.all_gather((problem, path))[0]
        if problem:
            raise ValueError(problem)
        return path


def info_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of ours says about itself; empty for others. Class names that are no texts are left out."""
    about = checkpoint.get("meinst")
    if not isinstance(about, dict):
        return {}
    names = about.get("class_names", ())
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return about
    return {key: value for key, value in about.items() if key != "class_names"}


def carried_components(state: Mapping[str, Any], path: object) -> Tensor | None:
    """The (..., D, S*S) mask components among weights, or None where there are none or they were never fitted.

    Raises:
        ValueError: they have another shape, or are not finite.
    """
    found = next((state[key] for key in state if key.endswith("mask_encoder.components")), None)
    if found is None or not bool(found.any()):
        return None
    if found.ndim not in (2, 3) or math.isqrt(found.shape[-1]) ** 2 != found.shape[-1]:
        raise ValueError(f"{path} has mask components of shape {tuple(found.shape)} instead of (D, S*S)")
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"{path} has mask components that are not finite: take another checkpoint")
    return found.float()


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
