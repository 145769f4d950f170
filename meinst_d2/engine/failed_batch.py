"""A batch whose loss is not finite, kept with the weights that gave it, so that it can be looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.files import atomic_path

TYPES = {cls.__name__: cls for cls in (BitMasks, Boxes, Instances, PolygonMasks)}
"""Of Detectron2, that :func:`_as_plain` writes under their names."""


@dataclass(frozen=True)
class FailedBatch:
    """What one process learned from in one iteration.

    Attributes:
        iteration, rank: which.
        random_seed: of torch's generator when the iteration began.
        losses: by name, as they were found.
        inputs: of the model, on the CPU.
        model: its weights, from before the iteration.
    """

    iteration: int
    rank: int
    random_seed: int
    losses: Mapping[str, float]
    inputs: Sequence[Mapping[str, Any]]
    model: Mapping[str, Tensor]

    @property
    def image_ids(self) -> list[str]:
        """Of the inputs, or their file names."""
        return [str(x.get("image_id", x.get("file_name"))) for x in self.inputs]

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write it, as tensors and plain containers, and return the file."""
        path = Path(folder) / f"nonfinite_iter_{self.iteration:07d}_process_{self.rank}.pth"
        inputs = [{name: _as_plain(value) for name, value in x.items()} for x in self.inputs]
        with atomic_path(path) as temporary:
            torch.save({**vars(self), "losses": dict(self.losses), "inputs": inputs}, temporary)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FailedBatch:
        """Read what :meth:`save` wrote; no code in it can run.

        Raises:
            ValueError: the file is not whole, or is of another kind.
        """
        content = read_checkpoint(path)
        try:
            inputs = [{name: _from_plain(value) for name, value in x.items()} for x in content["inputs"]]
            return cls(**{**content, "inputs": inputs})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a batch whose loss was not finite") from error

    def replay(self, model: nn.Module, inputs: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Tensor]:
        """The losses of all inputs, or of some, once more, by name, with gradients; the model gets the weights."""
        model.load_state_dict(dict(self.model))
        torch.manual_seed(self.random_seed)
        with EventStorage(self.iteration):
            return model.train()(self.inputs if inputs is None else inputs)


def _as_plain(value: Any) -> Any:
    """A field of an input as tensors and plain containers; one of Detectron2's types becomes {its name: content}."""
    if isinstance(value, Instances):
        fields = {name: _as_plain(field) for name, field in value.get_fields().items()}
        return {"Instances": {"image_size": tuple(value.image_size), **fields}}
    if isinstance(value, PolygonMasks):
        return {"PolygonMasks": [[torch.as_tensor(polygon) for polygon in instance] for instance in value.polygons]}
    if isinstance(value, (Boxes, BitMasks)):
        return {type(value).__name__: value.tensor.cpu()}
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, dict):
        return {name: _as_plain(field) for name, field in value.items()}
    return value.item() if isinstance(value, np.generic) else value.cpu() if isinstance(value, Tensor) else value


def _from_plain(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    name, content = next(iter(value.items()), ("", None))
    if name not in TYPES:
        return {key: _from_plain(field) for key, field in value.items()}
    if name == "Instances":
        return Instances(**{key: _from_plain(field) for key, field in content.items()})
    if name == "PolygonMasks":
        content = [[polygon.numpy() for polygon in instance] for instance in content]
    return TYPES[name](content)
