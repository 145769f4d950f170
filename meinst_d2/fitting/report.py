"""What a fit shows: how well each number of components reconstructs, as a table and a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from meinst_d2.encoding import PCABasis
from meinst_d2.files import atomic_path

Reconstruction = tuple[int, float, float]
"""How well the first D components reconstruct templates: D; the mean IoU over masks at S x S; the metric of the
published tool, the mean of the IoU of background and of foreground, each over all pixels of all masks."""


def table(basis: PCABasis, rows: Sequence[Reconstruction]) -> str:
    """A line per number of components: share of the variance, IoU, pooled mIoU."""
    lines = [f"{'D':>5} {'variance':>9} {'IoU':>7} {'pooled mIoU':>12}"]
    for dim, iou, pooled in rows:
        lines.append(f"{dim:>5} {basis.explained_variance_ratio[:dim].sum():>8.2%} {iou:>7.4f} {pooled:>12.4f}")
    return "\n".join(lines)


def show_components(axes: npt.NDArray[Any], basis: PCABasis) -> None:
    """The mean mask and the first components with their share of the variance, on one matplotlib axis each."""
    size = basis.mask_size
    axes[0].imshow(basis.mean.reshape(size, size), cmap="gray")
    axes[0].set_title("mean", fontsize=9)
    for i, axis in enumerate(axes[1 : 1 + basis.dim]):
        component = basis.components[i].reshape(size, size)
        peak = np.abs(component).max()
        axis.imshow(component, cmap="RdBu_r", vmin=-peak, vmax=peak)
        axis.set_title(f"{i + 1}: {basis.explained_variance_ratio[i]:.1%}", fontsize=9)
    for axis in axes:
        axis.set_axis_off()


def draw(path: str | os.PathLike[str], basis: PCABasis, rows: Sequence[Reconstruction]) -> None:
    """A picture of the mean mask, the first components and the IoU against D."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(15, 5.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1.6))
    show_components(left.subplots(3, 6, gridspec_kw={"wspace": 0.05, "hspace": 0.2}).ravel(), basis)
    axis = right.subplots()
    dims, ious, pooled = zip(*rows, strict=True)
    axis.plot(dims, ious, "o-", label="mean IoU per instance")
    axis.plot(dims, pooled, "s--", label="pooled two-class mIoU")
    axis.set(xlabel="components", ylabel="reconstruction")
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
