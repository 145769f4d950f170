"""Sheets of images: what was there, and what was found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from matplotlib import pyplot as plt

from meinst_d2.data.image_files import read_image
from meinst_d2.files import atomic_path
from meinst_d2.visualization.drawing import MaskVisualizer

matplotlib.use("Agg")


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
        image = read_image(record["file_name"], "RGB")
        found = found[found.scores > score_thresh].to("cpu")
        left, right = (MaskVisualizer(image, metadata, scale=width / image.shape[1]) for _ in range(2))
        truth = left.draw_dataset_dict(dict(record)).get_image()
        drawn = right.draw_instance_predictions(found).get_image()
        axis.imshow(np.concatenate((truth, np.full_like(truth[:, :6], 255), drawn), axis=1))
    for axis, title in zip(axes.ravel(), titles, strict=False):
        axis.set_title(title, fontsize=10, parse_math=False)
    figure.subplots_adjust(0.003, 0.003, 0.997, 1 - 0.1 / max(rows, 1) * bool(titles), 0.02, 0.12 if titles else 0.02)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
