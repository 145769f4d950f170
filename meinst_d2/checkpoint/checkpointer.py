"""Detectron2's checkpointer, which reads safely, writes whole files only, and downloads what their names promise."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Collection, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from meinst_d2 import __version__, require_detectron2
from meinst_d2.checkpoint.compatibility import Layer, changed_layers, leave_out
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.checkpoint.resume import TAG, OpenedCheckpoint, open_last_whole
from meinst_d2.files import atomic_path

require_detectron2()

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from detectron2.utils.file_io import PathManager  # noqa: E402

from meinst_d2.modeling.proposal_generator import settle_names  # noqa: E402

HASH_LENGTH = 8
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
"""The beginning of a download's sha256, like torch.hub's: name-0123abcd.pth."""


class MEInstCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, reading safely and writing atomically.

    A checkpoint appears under its name only once it is complete; ``last_checkpoint`` changes after that. Averaged
    weights are its ``model``, so that whatever loads it predicts with them; training resumes from the others, in
    ``ema``. Weights whose shapes do not fit the proposal generator are an error.

    Attributes:
        may_reinitialize: layers that are re-initialized where the weights do not fit them.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, opened: OpenedCheckpoint | None = None, **kwargs: Any
    ) -> None:
        """
        Args:
            opened: a file that is not read again when it is loaded; if it is in ``save_dir``, what to resume from.
            model, save_dir, kwargs: of DetectionCheckpointer.
        """
        super().__init__(model, save_dir, **kwargs)
        self.may_reinitialize: Collection[Layer] = ()
        self._opened, self._resumes_training = opened, False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Like Detectron2's. Averaged weights are loaded, unless training resumes from the others."""
        if "://" in path:
            url, _, query = path.partition("?")  # Detectron2's own queries say how to match names
            path = fetch(url) + ("?" + query if query else "")
        self._resumes_training = checkpointables is None and "trainer" in self.checkpointables
        return super().load(path, checkpointables)

    def _load_file(self, filename: str) -> Any:
        if filename.endswith((".pkl", ".pyth")):
            return self._torch_load(filename)
        return super()._load_file(filename)  # which reads through _torch_load

    def _torch_load(self, f: str) -> Any:
        opened, self._opened = self._opened, None  # so that its memory is free once it is loaded
        return opened.content if opened is not None and opened.path == Path(f) else read_checkpoint(f)

    def _load_model(self, checkpoint: Any) -> Any:
        average = checkpoint.get("ema")
        if self._resumes_training and isinstance(average, dict) and "raw" in average:
            checkpoint["ema"] = {**average, "model": checkpoint["model"]}
            checkpoint["model"] = checkpoint["ema"].pop("raw")
        left_out: dict[Layer, str] = {}
        if not checkpoint.get("matching_heuristics", False):
            state = checkpoint["model"]
            settle_names(state)
            ours = self.checkpointables["meinst"].content if "meinst" in self.checkpointables else {}
            changed = changed_layers(info_of(checkpoint), ours)
            left_out = leave_out(state, self.model.state_dict(), self.may_reinitialize, changed)
        incompatible = super()._load_model(checkpoint)
        for layer, reason in left_out.items():
            self.logger.warning(f"The {layer.name} is re-initialized: {reason}.")
            incompatible.missing_keys[:] = [x for x in incompatible.missing_keys if not x.startswith(layer.prefixes)]
        return incompatible

    def save(self, name: str, **kwargs: Any) -> None:
        """Write everything that training resumes from, and extra plain values."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        content = {"model": self.model.state_dict(), **states, **kwargs}
        if "model" in content.get("ema", {}):
            content["ema"] = {**content["ema"], "raw": content["model"]}
            content["model"] = content["ema"].pop("model")
        self._write(name, content)
        self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, model: nn.Module, **extra: Any) -> None:
        """Write the weights of a model to predict with, what this run's checkpoints say, and extra plain values."""
        if self.save_dir and self.save_to_disk:
            info = self.checkpointables.get("meinst")
            about = {} if info is None else {"meinst": info.state_dict()}
            self._write(name, {"model": model.state_dict(), **about, **extra})

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving {path}")
        with atomic_path(path) as temporary:
            torch.save(content, temporary)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        self._opened = None
        with atomic_path(os.path.join(self.save_dir, TAG)) as temporary:
            temporary.write_text(last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """The last checkpoint that is whole, as the main process sees it; all processes call this.

        Raises:
            ValueError: there are some, and none is whole.
        """
        problem, path, found = "", "", self._opened
        if comm.is_main_process():
            try:
                if found is None or found.path.parent != Path(self.save_dir):
                    found = self._opened = open_last_whole(Path(self.save_dir))
                path = str(found.path) if found else ""
            except ValueError as error:
                problem = str(error)
            for reason in found.passed_over if path and found else ():
                self.logger.warning(f"Resuming from an earlier checkpoint, {path}, because {reason}.")
        problem, path = comm.all_gather((problem, path))[0]
        if problem:
            raise ValueError(problem)
        return path


def fetch(url: str) -> str:
    """The local path of a URL that Detectron2's PathManager knows, downloaded into its cache unless it is there.

    Raises:
        OSError: it could not be downloaded; nothing is left behind.
        ValueError: its sha256 does not begin as its name says; it is deleted.
    """
    try:
        path: str = PathManager.get_local_path(url)
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"{url} could not be downloaded: {error}") from error
    promised = HASH_IN_NAME.search(urlparse(url).path)
    if promised and not (digest := hashlib.sha256(Path(path).read_bytes()).hexdigest()).startswith(promised[1]):
        Path(path).unlink(missing_ok=True)
        raise ValueError(
            f"{url} should have a sha256 that begins with {promised[1]}, but it begins with {digest[:HASH_LENGTH]}; "
            "the download was deleted, try again"
        )
    return path


def info_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint of ours says about itself; empty for others. Class names that are not strings are left out."""
    about = checkpoint.get("meinst")
    about = dict(about) if isinstance(about, dict) else {}
    names = about.get("class_names", ())
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        del about["class_names"]
    return about


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


class CheckpointInfo:
    """What a checkpoint says about itself besides its weights: plain values by name, stored under "meinst"."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    @classmethod
    def from_config(cls, cfg: CfgNode) -> CheckpointInfo:
        """The masks' encoding and the class names."""
        content: dict[str, Any] = {"version": __version__}
        if cfg.DATASETS.TRAIN:
            content["class_names"] = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes")
        if cfg.MODEL.MASK_ON:
            content |= {key: cfg.MODEL.MEINST[key.upper()] for key in ("encoder", "sigmoid", "whiten")}
        return cls(content)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpointer."""
        return self.content

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The config of this run says more than the checkpoint's, so nothing is taken over."""
