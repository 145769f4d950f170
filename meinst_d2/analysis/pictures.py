"""An analysis in pictures: where AP and mask IoU are lost, and the worst images."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path

import matplotlib
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from matplotlib import pyplot as plt

from meinst_d2.analysis.analysis import PARTS, Analysis
from meinst_d2.analysis.inputs import Detections, Truth
from meinst_d2.analysis.report import MOST_CLASSES
from meinst_d2.files import atomic_path
from meinst_d2.masks.rle import decode_rle
from meinst_d2.visualization.drawing import draw_sheet

matplotlib.use("Agg")

COLORS = {
    "mask AP": "0.75",
    "detection": "tab:purple",
    "box": "tab:blue",
    "encoding": "tab:orange",
    "template": "tab:orange",
    "coefficients": "gold",
    "regression": "tab:red",
}
METADATA = "meinst_analysis"


def draw_losses_of_ap(path: str | os.PathLike[str], analysis: Analysis) -> None:
    """Where mask AP goes, the mask error by size, and box AP against mask AP by class."""
    classes = analysis.worst_classes()[:MOST_CLASSES]
    height = max(4.2, 1.2 + 0.28 * len(classes))
    figure, axes = plt.subplots(1, 3, figsize=(15, height), layout="constrained", width_ratios=(1, 1.1, 1.2))
    left, middle, right = axes

    bars = {"mask AP": analysis.masks["predicted"].ap, **dict(reversed(analysis.lost.items()))}
    start = 0.0
    for at, (name, points) in enumerate(bars.items()):
        points = float(np.nan_to_num(points))
        left.bar(at, points, bottom=start, color=COLORS[name])
        left.text(at, max(start, start + points) + 1, f"{points:.1f}", ha="center", fontsize=9)
        start += points
    left.set_xticks(range(len(bars)), list(bars), fontsize=9)
    left.set_ylim(0, 107)

    rows = analysis.pairs.by_size()
    above, below = np.zeros(len(rows)), np.zeros(len(rows))
    for part in PARTS:
        values = np.nan_to_num([row.parts[part] for row in rows.values()])
        middle.bar(range(len(rows)), values, bottom=np.where(values >= 0, above, below), label=part, color=COLORS[part])
        above += np.maximum(values, 0)
        below += np.minimum(values, 0)
    middle.set_xticks(range(len(rows)), [f"{name}\n{len(row):,}" for name, row in rows.items()], fontsize=9)
    middle.axhline(0, color="0.3", linewidth=0.8)
    middle.set_ylim(top=max(0.01, above.max() * 1.3))
    middle.legend(ncols=2, fontsize=9, frameon=False, loc="upper right")

    at = np.arange(len(classes))
    box, mask = analysis.box.by_class, analysis.masks["predicted"].by_class
    right.barh(at - 0.2, [box[k] for k in classes], 0.38, label="box AP", color="tab:blue")
    right.barh(at + 0.2, [mask[k] for k in classes], 0.38, label="mask AP", color="0.6")
    right.set_yticks(at, [analysis.class_names[k] for k in classes], fontsize=8.5, parse_math=False)
    right.invert_yaxis()
    right.set_xlim(0, 100)
    rest = len(analysis.class_names) - len(classes)
    right.legend(fontsize=9, loc="lower right")

    last = "AP by class, worst first" + (f" ({rest} more)" if rest else "")
    titles = "where mask AP goes, of 100 points", "mask error (1 - IoU) of matched detections", last
    for axis, direction, title in zip(axes, "yyx", titles, strict=True):
        axis.set_title(title, fontsize=10.5)
        axis.grid(alpha=0.3, axis=direction)
        axis.set_axisbelow(True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)


def draw_worst(
    path: str | os.PathLike[str],
    analysis: Analysis,
    truth: Truth,
    detections: Mapping[Hashable, Detections],
    images: str | os.PathLike[str],
    *,
    count: int = 12,
) -> None:
    """The worst images: ground truth on the left, detections above the threshold on the right.

    Args:
        path: the picture.
        analysis: of the results.
        truth, detections: that were analyzed.
        images: folder of the images.
        count: how many.

    Raises:
        FileNotFoundError: an image is not in the folder.
    """
    records, found, titles = [], [], []
    for image in [image for image in analysis.images if image.total > 0][:count]:
        of_image = truth.images[image.image_id]
        file = str(Path(images) / of_image.record.get("file_name", ""))
        if not os.path.isfile(file):
            raise FileNotFoundError(f"the image {file} does not exist: name the folder of the images")
        annotations = [
            {"bbox": x.box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": x.category, "segmentation": dict(rle)}
            for x, rle in zip(of_image.annotations, of_image.rles, strict=True)
        ]
        records.append({**of_image.record, "file_name": file, "annotations": annotations})
        detected = detections[image.image_id]
        found.append(Instances(of_image.size, pred_boxes=Boxes(torch.from_numpy(detected.xyxy))))
        found[-1].scores, found[-1].pred_classes = map(torch.from_numpy, (detected.scores, detected.classes))
        masks = [decode_rle(rle, *of_image.size) for rle in detected.rles]
        found[-1].pred_masks = torch.from_numpy(np.array(masks, bool).reshape(-1, *of_image.size))
        parts = f"masks {image.mask_error:.1f} + {image.missed} missed + {image.false} false"
        titles.append(f"{image.image_id}: error {image.total:.1f} = {parts}")
    if METADATA in MetadataCatalog.list():
        MetadataCatalog.remove(METADATA)  # of an analysis before, with other classes
    MetadataCatalog.get(METADATA).set(thing_classes=list(analysis.class_names))
    draw_sheet(path, records, found, METADATA, score_thresh=analysis.score_threshold, columns=2, titles=titles)
