"""Pictures of encodings: their quality against the length of the vector, by size and by class, and what they do."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.shapes import CATEGORIES, ShapesConfig, draw_image
from meinst_d2.files import atomic_path
from meinst_d2.masks.metrics import mask_iou
from meinst_d2.masks.rasterize import BoolArray
from meinst_d2.reconstruction.encodings import FAMILIES, Encoding, reconstruct
from meinst_d2.reconstruction.measure import SIZES, own_resolution_mask
from meinst_d2.reconstruction.report import Row

matplotlib.use("Agg")

FEWEST_OF_A_CLASS = 5  # masks below which a class has no bar: their mean would say little
MOST_CLASSES = 40  # bars: those of the classes with the most masks
DASHES = ("-", "--", ":", "-.")
METRICS = {
    "template_iou": "mean IoU at S x S",
    "pooled_miou": "pooled two-class mIoU at S x S (published metric)",
    "iou": "mean IoU at the object's own resolution",
    "boundary_iou": "mean boundary IoU at the object's own resolution",
}
EXAMPLES: Mapping[str, int] = {"ring": 2, "cut": 2, "star": 1}
"""How many shapes of each category; a star is what outlines are good at."""
EXAMPLE_IMAGES = ShapesConfig(
    height=320, width=320, min_objects=1, max_objects=1, min_side=180, max_side=300, empty=0, crowd=0
)
PIXELS = {"reconstructed": (0.22, 0.30, 0.38), "lost": (0.86, 0.22, 0.18), "added": (0.98, 0.72, 0.25)}


def draw_quality(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """The four metrics against the length of the vector, a line per family and template size.

    Encodings of one length are points. Grids, whose vectors are long, are levels, and left out where they are 1 by
    definition.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharex=True)
    longest = max((row.encoding.length for row in rows if "grid" not in row.encoding.family), default=100)
    variants = Counter[str]()
    for label in dict.fromkeys(row.label for row in rows):
        group = [row for row in rows if row.label == label]
        family = group[0].encoding.family
        _, color, marker = FAMILIES[family]
        style = {"color": color, "linestyle": DASHES[variants[family] % 4], "label": label}
        variants[family] += 1
        for axis, metric in zip(axes.ravel(), METRICS, strict=True):
            values = [getattr(row.total, metric) for row in group]
            if "grid" not in family:
                lengths = [row.encoding.length for row in group]
                axis.plot(lengths, values, marker=marker, markersize=6, markerfacecolor="none", **style)
            elif metric in ("iou", "boundary_iou"):
                axis.axhline(values[0], linewidth=1.2, **style)
    for axis, title in zip(axes.ravel(), METRICS.values(), strict=True):
        axis.set_title(title, fontsize=10.5)
        axis.grid(alpha=0.3)
        axis.set(xlim=(0, longest * 1.06), xlabel="numbers in the vector" if axis in axes[1] else "")
    _save(figure, path, axes[1, 0].get_legend_handles_labels()[0], "outside lower center", 5)


def draw_sizes(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """IoU and boundary IoU at the object's own resolution, by object size, a bar per row."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    width = 0.85 / len(rows)
    counts = [quality.count for quality in rows[0].by_size]
    for axis, metric in zip(axes, ("iou", "boundary_iou"), strict=True):
        for number, row in enumerate(rows):
            at = np.arange(len(SIZES)) + (number - (len(rows) - 1) / 2) * width
            values = [getattr(quality, metric) for quality in row.by_size]
            axis.bar(at, values, width, label=row.title, color=FAMILIES[row.encoding.family][1])
        axis.set_xticks(range(len(SIZES)), [f"{name}\n{count:,}" for name, count in zip(SIZES, counts, strict=True)])
        axis.set_title(METRICS[metric], fontsize=10.5)
        axis.grid(alpha=0.3, axis="y")
        lowest = min((bar.get_height() for bar in axis.patches if bar.get_height() > 0), default=0)
        axis.set(axisbelow=True, ylim=(max(0, np.floor(lowest * 10 - 0.5) / 10), 1))
    _save(figure, path, axes[0].get_legend_handles_labels()[0], "outside lower center", 5)


def draw_classes(path: str | os.PathLike[str], rows: Sequence[Row], names: Sequence[str]) -> None:
    """IoU at the object's own resolution by class: bars of the first row, marks of the others."""
    counts = np.array([quality.count for quality in rows[0].by_class])
    shown = [k for k in np.argsort(-counts, kind="stable")[:MOST_CLASSES] if counts[k] >= FEWEST_OF_A_CLASS]
    shown.sort(key=lambda k: rows[0].by_class[k].iou)
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.21 * len(shown)), layout="constrained")
    at = np.arange(len(shown))
    handles: list[Any] = []
    for row in rows:
        values = [row.by_class[k].iou for k in shown]
        _, color, marker = FAMILIES[row.encoding.family]
        if row is rows[0]:
            handles.append(axis.barh(at, values, color=color, alpha=0.45, label=row.title))
        else:
            handles += axis.plot(values, at, marker, color=color, label=row.title, markersize=4.5)
    axis.set_yticks(at, [f"{names[k]} ({counts[k]:,})" for k in shown], fontsize=8.5)
    lowest = min((row.by_class[k].iou for row in rows for k in shown), default=0)
    axis.set(xlim=(max(0, np.floor(lowest * 20 - 0.2) / 20), 1), ylim=(-0.7, len(shown) - 0.3), axisbelow=True)
    axis.set_xlabel("mean IoU at the object's own resolution")
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path, handles, "outside upper center", 3)


def example_shapes(seed: int = 0) -> list[BoolArray]:
    """(H, W) masks of generated shapes that are whole, in the order of ``EXAMPLES``: the same seed gives the same."""
    found: dict[str, list[BoolArray]] = {name: [] for name in EXAMPLES}
    side, numbers = EXAMPLE_IMAGES.height, itertools.count()
    while any(len(found[name]) < count for name, count in EXAMPLES.items()):
        for shape in draw_image(EXAMPLE_IMAGES, (seed, next(numbers)))[1]:
            name = CATEGORIES[shape["category_id"] - 1]
            x, y, width, height = shape["bbox"]
            box = x, y, x + width, y + height
            if min(box) > 0 and max(box) < side and len(found.get(name, ())) < EXAMPLES.get(name, 0):
                annotation = InstanceAnnotation(shape["segmentation"], box, (side, side), 0, False)
                found[name].append(own_resolution_mask(annotation))
    return list(itertools.chain(*found.values()))


def draw_reconstructed(
    path: str | os.PathLike[str], masks: Sequence[BoolArray], encodings: Mapping[str, Encoding]
) -> None:
    """What becomes of holes and second parts: a row per mask, then what each encoding makes of it (paper, figure 1).

    Args:
        path: the picture.
        masks: (H, W) each.
        encodings: by the title of their column; none class-specific.
    """
    size = 1.7 * (1 + len(encodings)), 1.85 * len(masks) + 0.6  # inches
    figure, axes = plt.subplots(len(masks), 1 + len(encodings), figsize=size, squeeze=False)
    for row, mask in zip(axes, masks, strict=True):
        height, width = mask.shape
        reach = 0.54 * max(height, width)  # cells are squares around the mask, with a margin
        again = [mask, *(reconstruct(encoding, mask) for encoding in encodings.values())]
        for axis, other in zip(row, again, strict=True):
            picture = np.ones((height, width, 3))
            for which, color in zip((mask & other, mask & ~other, other & ~mask), PIXELS.values(), strict=True):
                picture[which] = color
            axis.imshow(picture, interpolation="nearest")
            limits = {"xlim": (width / 2 - reach, width / 2 + reach), "ylim": (height / 2 + reach, height / 2 - reach)}
            axis.set(**limits, xticks=[], yticks=[])
            axis.spines[:].set_color("0.85")
            if other is not mask:
                axis.set_xlabel(f"IoU {mask_iou(mask, other):.3f}", fontsize=9, labelpad=2)
    for axis, title in zip(axes[0], ("mask", *encodings), strict=True):
        axis.set_title(title, fontsize=9.5)
    handles = [Patch(color=color, label=name) for name, color in PIXELS.items()]
    figure.subplots_adjust(0.01, 0.06, 0.99, 0.945, 0.05, 0.15)
    _save(figure, path, handles, "lower center", 3)


def _save(figure: Figure, path: str | os.PathLike[str], handles: Sequence[Any], legend_at: str, ncols: int) -> None:
    figure.legend(handles=handles, loc=legend_at, ncols=ncols, frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
