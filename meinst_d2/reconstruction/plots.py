"""Pictures of the quality of encodings: against the length of the vector, by size and by class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from meinst_d2.files import atomic_path
from meinst_d2.reconstruction.own_resolution import SIZES
from meinst_d2.reconstruction.report import Row

matplotlib.use("Agg")


FEWEST_OF_A_CLASS = 5
"""Masks below which a class has no bar: their mean would say little."""

MOST_CLASSES = 40
"""Bars: those of the classes with the most masks."""

COLORS = {
    "pca": "tab:blue",
    "class-pca": "tab:green",
    "dct": "tab:orange",
    "grid": "0.2",
    "area-grid": "0.55",
    "polar": "tab:red",
    "chebyshev": "tab:purple",
}
MARKS = {"pca": "o", "class-pca": "x", "dct": "s", "grid": "D", "area-grid": "v", "polar": "P", "chebyshev": "X"}
DASHES = ("-", "--", ":", "-.")

METRICS = {
    "template_iou": "mean IoU at S x S",
    "pooled_miou": "pooled two-class mIoU at S x S (published metric)",
    "iou": "mean IoU at the object's own resolution",
    "boundary_iou": "mean boundary IoU at the object's own resolution",
}


def draw_quality(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """The four metrics against the length of the vector, a line per family and template size.

    Encodings of one length are points. Grids, whose vectors are long, are levels, and left out where they are 1 by
    definition.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharex=True)
    longest = max((row.encoding.length for row in rows if "grid" not in row.encoding.family), default=100)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.label, []).append(row)
    variants = Counter[str]()
    for label, group in groups.items():
        family = group[0].encoding.family
        style = {"color": COLORS[family], "linestyle": DASHES[variants[family] % 4], "label": label}
        variants[family] += 1
        for axis, metric in zip(axes.ravel(), METRICS, strict=True):
            values = [getattr(row.total, metric) for row in group]
            if "grid" not in family:
                lengths = [row.encoding.length for row in group]
                axis.plot(lengths, values, marker=MARKS[family], markersize=6, markerfacecolor="none", **style)
            elif metric in ("iou", "boundary_iou"):
                axis.axhline(values[0], linewidth=1.2, **style)
    for axis, title in zip(axes.ravel(), METRICS.values(), strict=True):
        axis.set_title(title, fontsize=10.5)
        axis.grid(alpha=0.3)
        axis.set_xlim(0, longest * 1.06)
    for axis in axes[1]:
        axis.set_xlabel("numbers in the vector")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    _save(figure, path)


def draw_sizes(path: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """IoU and boundary IoU at the object's own resolution, by object size, a bar per row."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    width = 0.85 / len(rows)
    for number, row in enumerate(rows):
        at = np.arange(len(SIZES)) + (number - (len(rows) - 1) / 2) * width
        for axis, metric in zip(axes, ("iou", "boundary_iou"), strict=True):
            values = [getattr(quality, metric) for quality in row.by_size]
            axis.bar(at, values, width, label=row.title, color=COLORS[row.encoding.family])
    counts = [quality.count for quality in rows[0].by_size]
    for axis, metric in zip(axes, ("iou", "boundary_iou"), strict=True):
        axis.set_xticks(range(len(SIZES)), [f"{name}\n{count:,}" for name, count in zip(SIZES, counts, strict=True)])
        axis.set_title(METRICS[metric], fontsize=10.5)
        axis.grid(alpha=0.3, axis="y")
        axis.set_axisbelow(True)
        lowest = min((bar.get_height() for bar in axis.patches if bar.get_height() > 0), default=0)
        axis.set_ylim(bottom=max(0, np.floor(lowest * 10 - 0.5) / 10), top=1)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    _save(figure, path)


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
        label, color = row.title, COLORS[row.encoding.family]
        if row is rows[0]:
            handles.append(axis.barh(at, values, color=color, alpha=0.45, label=label))
        else:
            handles += axis.plot(values, at, MARKS[row.encoding.family], color=color, label=label, markersize=4.5)
    axis.set_yticks(at, [f"{names[k]} ({counts[k]:,})" for k in shown], fontsize=8.5)
    lowest = min((row.by_class[k].iou for row in rows for k in shown), default=0)
    axis.set_xlim(max(0, np.floor(lowest * 20 - 0.2) / 20), 1)
    axis.set_ylim(-0.7, len(shown) - 0.3)
    axis.set_xlabel("mean IoU at the object's own resolution")
    axis.grid(alpha=0.3, axis="x")
    axis.set_axisbelow(True)
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
