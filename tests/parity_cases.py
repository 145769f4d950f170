"""What the published implementation computed on generated images, and the weights it computed with.

A case is an .npz: images, ground truth, losses, gradient norms, detections and pasted masks. Its weights are not
stored: they are drawn anew, in the order of the key list, from a seeded generator.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, PolygonMasks

FOLDER = Path(__file__).parent / "parity"


class Case:
    """One .npz."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files if name != "meta"}
            self.meta: dict[str, Any] = json.loads(str(file["meta"]))

    def batch(self) -> list[dict[str, Any]]:
        """The two images with polygons, as Detectron2's own mapper would give them."""
        batch = []
        for i, size in enumerate(self.meta["inputs"]):
            lengths = self.arrays[f"img{i}_poly_lengths"]
            parts = iter(np.split(self.arrays[f"img{i}_poly_xy"], np.cumsum(lengths)[:-1]))
            instances = Instances(tuple(size["image_size"]))
            instances.gt_boxes = Boxes(torch.from_numpy(self.arrays[f"img{i}_gt_boxes"]))
            instances.gt_classes = torch.from_numpy(self.arrays[f"img{i}_gt_classes"])
            instances.gt_masks = PolygonMasks(
                [[next(parts) for _ in range(count)] for count in self.arrays[f"img{i}_poly_counts"]]
            )
            image = torch.from_numpy(self.arrays[f"img{i}_image"])
            batch.append({"image": image, "height": size["height"], "width": size["width"], "instances": instances})
        return batch

    def pasted_masks(self, image: int) -> np.ndarray:
        """(N, height, width) bool."""
        shape = self.meta["post_masks_shape"][image]
        return np.unpackbits(self.arrays[f"img{image}_post_masks"])[: math.prod(shape)].reshape(shape).astype(bool)

    def weights(self) -> dict[str, torch.Tensor]:
        """The state dict under the published names."""
        settings = dict(zip(self.meta["config"]["opts"][0::2], self.meta["config"]["opts"][1::2], strict=True))
        components = FOLDER / "components_60.npz"
        if not settings.get("MODEL.MEInst.SIGMOID", True):
            components = self.path.parents[1] / "components_sigmoidFalse_60.npz"
        return published_weights(self.meta["layout"], self.meta["seed"], components)


def published_weights(
    layout: str, seed: int, components_file: Path = FOLDER / "components_60.npz"
) -> dict[str, torch.Tensor]:
    """Weights that make every part of the model matter, with the fitted components."""
    with np.load(components_file, allow_pickle=False) as file:
        components = {
            "components": file["components_c"][0],
            "means": file["mean_c"][0],
            "explained_variances": file["explained_variance_c"][0],
        }
    generator = torch.Generator().manual_seed(1000 + seed)
    weights = {}
    for row in (FOLDER / f"keys/{layout}.tsv").read_text().splitlines():
        key, shape = row.split("\t")
        if "mask_encoding" in key:
            weights[key] = torch.from_numpy(components[key.split(".")[-1]])
        else:
            weights[key] = _draw(key, tuple(json.loads(shape)), generator)
    return weights


def _draw(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    def normal(std: float) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * std

    kernel, fan_in = len(shape) == 4, math.prod(shape[1:])
    if "bottom_up" in key:
        if key.endswith("conv3.norm.weight"):
            return torch.full(shape, 0.3)
        if key.endswith("stem.conv1.norm.weight"):
            return torch.full(shape, 0.03)
        if key.endswith(("norm.bias", "running_mean")):
            return normal(0.05)
        if key.endswith("running_var"):
            return 1 + 0.1 * torch.rand(shape, generator=generator)
        return normal((2.0 / (shape[0] * shape[2] * shape[3])) ** 0.5) if kernel else torch.ones(shape)
    if "backbone" in key:
        return normal((1.0 / fan_in) ** 0.5 if kernel else 0.05)
    if "scales" in key:
        return torch.full(shape, (1.0, 0.9, 1.1, 1.25, 0.8)[int(key.split(".")[-2])])
    if "tower" in key:
        if ".offset." in key:
            return normal(0.03 if kernel else 0.3)
        if kernel:
            return normal(1.4 / fan_in**0.5)
        return 1 + normal(0.1) if key.endswith("weight") else normal(0.1)
    if "cls_logits" in key:
        if kernel:
            return normal(0.03)
        bias = normal(0.2) - 6.0
        bias[torch.randperm(len(bias), generator=generator)[:10]] += 2.2
        return bias
    if "bbox_pred" in key:
        return normal(0.03) if kernel else normal(0.2) + 2.5
    return normal(0.03 if kernel else 0.1)  # centerness and mask predictors
