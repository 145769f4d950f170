"""Pictures of a run: what was there, what was found, and how the losses fell."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from matplotlib import pyplot as plt
from torch import nn

from meinst_d2.files import atomic_path
from meinst_d2.visualization.drawing import MaskVisualizer

matplotlib.use("Agg")


@torch.no_grad()
def predict_dataset(cfg: CfgNode, model: nn.Module, dataset_name: str, limit: int | None = None) -> list[Instances]:
    """Detections on the first images of a dataset, at the images' size.

    Args:
        cfg: of the test loader.
        model: in evaluation mode.
        dataset_name: registered.
        limit: how many images; None for all.
    """
    loader = build_detection_test_loader(cfg, dataset_name)
    return [model(inputs)[0]["instances"] for inputs in itertools.islice(loader, limit)]


def draw_sheet(
    path: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    detections: Sequence[Instances],
    dataset_name: str,
    *,
    score_thresh: float = 0.4,
    columns: int = 3,
    width: int = 320,
    titles: Sequence[str] = (),
) -> None:
    """Images with the ground truth on the left and the detections on the right.

    Args:
        path: the picture.
        records: of the images, in Detectron2's dataset format.
        detections: of each image, at the image's size.
        dataset_name: where class names and colours come from.
        score_thresh: detections below are left out.
        columns: pairs side by side.
        width: of one drawing, in pixels.
        titles: of each image; none are drawn where there are none.
    """
    rows = -(-len(records) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 2 * width / 100, rows * width / 100), squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    metadata = MetadataCatalog.get(dataset_name)
    for axis, record, found in zip(axes.ravel(), records, detections, strict=False):
        image = read_image(record["file_name"], format="RGB")
        scale = width / image.shape[1]

        def visualizer(image: np.ndarray = image, scale: float = scale) -> MaskVisualizer:
            return MaskVisualizer(image, metadata, scale=scale)

        truth = visualizer().draw_dataset_dict(dict(record)).get_image()
        drawn = visualizer().draw_instance_predictions(found[found.scores > score_thresh].to("cpu")).get_image()
        axis.imshow(np.concatenate((truth, np.full_like(truth[:, :6], 255), drawn), axis=1))
    for axis, title in zip(axes.ravel(), titles, strict=False):
        axis.set_title(title, fontsize=10)
    figure.subplots_adjust(0.003, 0.003, 0.997, 1 - 0.1 / max(rows, 1) * bool(titles), 0.02, 0.12 if titles else 0.02)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def draw_losses(path: str | os.PathLike[str], metrics: str | os.PathLike[str]) -> None:
    """The losses of a run over its iterations.

    Args:
        path: the picture.
        metrics: Detectron2's metrics.json of the run.
    """
    rows = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    rows = [row for row in rows if "total_loss" in row]
    names = sorted(name for name in rows[0] if name.startswith("loss_"))
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    iterations = [row["iteration"] for row in rows]
    for name in ("total_loss", *names):
        axis.plot(iterations, [row[name] for row in rows], label=name, linewidth=2.5 if name == "total_loss" else 1.5)
    axis.set_xlabel("iteration")
    axis.set_ylabel("loss")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
