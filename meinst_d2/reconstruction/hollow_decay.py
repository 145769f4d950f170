"""What becomes of holes and second parts: shapes redrawn by several encodings, side by side (paper, figure 1)."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.shapes import CATEGORIES, ShapesConfig, draw_image
from meinst_d2.files import atomic_path
from meinst_d2.masks.metrics import mask_iou
from meinst_d2.masks.rasterize import BoolArray
from meinst_d2.reconstruction.encodings import Encoding, redraw
from meinst_d2.reconstruction.own_resolution import own_resolution_mask

matplotlib.use("Agg")

EXAMPLES: Mapping[str, int] = {"ring": 2, "cut": 2, "star": 1}
"""How many shapes of each category; a star is what outlines are good at."""

CONFIG = ShapesConfig(height=320, width=320, min_objects=1, max_objects=1, min_side=180, max_side=300, empty=0, crowd=0)

COLORS = {"redrawn": (0.22, 0.30, 0.38), "lost": (0.86, 0.22, 0.18), "added": (0.98, 0.72, 0.25)}


def example_shapes(seed: int = 0) -> list[BoolArray]:
    """Generated shapes that are whole, in the order of ``EXAMPLES``: the same seed gives the same.

    Returns:
        (H, W) each, at their own resolution.
    """
    found: dict[str, list[BoolArray]] = {name: [] for name in EXAMPLES}
    for number in itertools.count():
        if all(len(found[name]) == count for name, count in EXAMPLES.items()):
            return [mask for masks in found.values() for mask in masks]
        _, annotations = draw_image(CONFIG, (seed, number))
        for annotation in annotations:
            name = CATEGORIES[annotation["category_id"] - 1]
            x, y, width, height = annotation["bbox"]
            whole = x > 0 and y > 0 and x + width < CONFIG.width and y + height < CONFIG.height
            if whole and len(found.get(name, ())) < EXAMPLES.get(name, 0):
                box, size = (x, y, x + width, y + height), (CONFIG.height, CONFIG.width)
                instance = InstanceAnnotation(annotation["segmentation"], box, size, 0, False)
                found[name].append(own_resolution_mask(instance))
    raise AssertionError("counting never ends")


def draw_redrawn(
    path: str | os.PathLike[str], masks: Sequence[BoolArray], encodings: Mapping[str, Encoding], side: float = 1.7
) -> None:
    """A row per mask: the mask, then what each encoding makes of it, with the IoU.

    Args:
        path: the picture.
        masks: (H, W) each.
        encodings: by the title of their column; none class-specific.
        side: of a cell, in inches.
    """
    figure, axes = plt.subplots(
        len(masks),
        1 + len(encodings),
        figsize=(side * (1 + len(encodings)), (side + 0.15) * len(masks) + 0.6),
        squeeze=False,
    )
    for row, mask in zip(axes, masks, strict=True):
        _show(row[0], mask, mask)
        for axis, encoding in zip(row[1:], encodings.values(), strict=True):
            again = redraw(encoding, mask)
            _show(axis, mask, again)
            axis.set_xlabel(f"IoU {mask_iou(mask, again):.3f}", fontsize=9, labelpad=2)
    for axis, title in zip(axes[0], ("mask", *encodings), strict=True):
        axis.set_title(title, fontsize=9.5)
    handles = [Patch(color=color, label=name) for name, color in COLORS.items()]
    figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.subplots_adjust(0.01, 0.06, 0.99, 0.945, 0.05, 0.15)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def _show(axis: Axes, mask: BoolArray, again: BoolArray) -> None:
    """One cell, centred in a square of the mask's longer side."""
    height, width = mask.shape
    longer = max(height, width)
    picture: npt.NDArray[np.float64] = np.ones((height, width, 3))
    picture[mask & again] = COLORS["redrawn"]
    picture[mask & ~again] = COLORS["lost"]
    picture[again & ~mask] = COLORS["added"]
    axis.imshow(picture, interpolation="nearest")
    margin = 0.04 * longer
    axis.set_xlim(width / 2 - longer / 2 - margin, width / 2 + longer / 2 + margin)
    axis.set_ylim(height / 2 + longer / 2 + margin, height / 2 - longer / 2 - margin)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("0.85")
