"""The images that an export is checked on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from torch import Tensor

from meinst_d2.data.shapes import ShapesConfig, draw_image

GENERATED = ((96, 128), (160, 128), (128, 200))
"""(height, width) of the images that are drawn where none are given."""


def check_batches(paths: Sequence[str | os.PathLike[str]], metadata: Mapping[str, str]) -> list[list[Tensor]]:
    """The first image alone, then all in pairs, so that batches, sizes and padding differ.

    Args:
        paths: image files; none for drawings of shapes.
        metadata: of :class:`~meinst_d2.export.source.ExportSource`.

    Raises:
        OSError: a file is missing or no image.
    """
    images = [as_model_input(pixels, metadata) for pixels in (_read(paths) if paths else _drawn())]
    return [images[:1], *(images[i : i + 2] for i in range(0, len(images), 2))]


def as_model_input(pixels: np.ndarray, metadata: Mapping[str, str]) -> Tensor:
    """An RGB image (H, W, 3) resized as at test time: (3, H', W') uint8, channels in the model's order."""
    resize = T.ResizeShortestEdge(int(metadata["min_size_test"]), int(metadata["max_size_test"]))
    pixels = resize.get_transform(pixels).apply_image(pixels)
    if metadata["input_format"] == "BGR":
        pixels = pixels[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _read(paths: Sequence[str | os.PathLike[str]]) -> Iterable[np.ndarray]:
    return (read_image(os.fspath(path), format="RGB") for path in paths)


def _drawn() -> Iterable[np.ndarray]:
    for seed, (height, width) in enumerate(GENERATED):
        yield draw_image(ShapesConfig(height=height, width=width), (seed,))[0]
