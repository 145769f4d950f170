"""Curves of how a cost grows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common import Row

LIMIT = " (limit)"
"""Ends the names of curves that nothing can be below."""


def draw_growth(panels: Mapping[str, Sequence[Row]], path: Path, unit: str, columns: int) -> None:
    """One panel per quantity that grows, both axes logarithmic; limits are dashed.

    Args:
        panels: by what grows; rows whose ``what`` is "NAME at VALUE".
        path: the picture.
        unit: of the samples.
        columns: panels side by side.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from meinst_d2.files import atomic_path

    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(6 * columns, 4.3 * lines), layout="constrained", squeeze=False)
    for axis, (title, rows) in zip(axes.ravel(), panels.items(), strict=True):
        curves: dict[str, list[tuple[int, float]]] = {}
        for row in rows:
            name, value = row.what.rsplit(" at ", 1)
            curves.setdefault(name, []).append((int(value.replace(",", "")), statistics.median(row.ours.samples)))
        for name, points in curves.items():
            style = {"ls": "--", "color": "black", "lw": 1} if name.endswith(LIMIT) else {"marker": "o", "ms": 4}
            axis.plot(*zip(*points, strict=True), label=name, **style)
        values = sorted({value for points in curves.values() for value, _ in points})
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel=unit)
        axis.set_xticks(values, [f"{value:,}" for value in values])
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
    print(f"wrote {path}")
