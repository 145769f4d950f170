#!/usr/bin/env python
"""Draw the pictures of docs/how-it-works.md from generated shapes: encoding, components, assignment, pasting."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """example:
  dev/draw_method.py --output docs/images
"""
SIZE, DIMS = 28, (5, 20, 60)
STRIDES, SIZE_BOUNDS = (8, 16, 32), (32, 64)

if TYPE_CHECKING:
    import numpy as np

    from meinst_d2.encoding import PCABasis


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs/images", help="folder (default docs/images)")
    parser.add_argument("--images", type=int, default=600, help="generated, to fit components to (default 600)")
    return parser.parse_args()


class Shapes:
    """Generated images and the templates of their objects."""

    def __init__(self, count: int) -> None:
        import numpy as np

        from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation
        from meinst_d2.data.instances import make_templates
        from meinst_d2.data.shapes import ShapesConfig, draw_image

        config = ShapesConfig()
        drawn = [draw_image(config, (0, 0, i)) for i in range(count)]
        self.images = [image for image, _ in drawn]
        self.objects = [(i, a) for i, (_, found) in enumerate(drawn) for a in found if not a["iscrowd"]]
        boxes = np.array([a["bbox"] for _, a in self.objects], np.float32)
        self.boxes = np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1)
        table = AnnotationTable(
            InstanceAnnotation(a["segmentation"], tuple(box), (config.height, config.width), a["category_id"], False)
            for (_, a), box in zip(self.objects, self.boxes.tolist(), strict=True)
        )
        found = make_templates(table, SIZE)
        self.objects = [self.objects[i] for i in found.kept]
        self.boxes, self.templates = self.boxes[found.kept], found.masks

    def one_of_each(self) -> list[int]:
        """The largest object of every category."""
        areas = (self.boxes[:, 2:] - self.boxes[:, :2]).prod(1)
        categories = [a["category_id"] for _, a in self.objects]
        return [
            max((i for i, found in enumerate(categories) if found == category), key=lambda i: areas[i])
            for category in sorted(set(categories))
        ]

    def basis(self) -> PCABasis:
        """Every component of the templates."""
        from meinst_d2.encoding import PixelMoments, fit_pca

        moments = PixelMoments(SIZE)
        moments.update(self.templates)
        return fit_pca(moments)


def reconstructed(basis: PCABasis, template: np.ndarray, dim: int) -> np.ndarray:
    """(S, S) probabilities of a template encoded with the first ``dim`` components."""
    import torch

    from meinst_d2.encoding import PCAEncoder

    encoder = PCAEncoder(dim=dim, mask_size=SIZE).eval()
    encoder.load_bases([basis.truncated(dim)])
    return encoder.decode(encoder.encode(torch.from_numpy(template[None])))[0].numpy()


def draw_encoding(shapes: Shapes, basis: PCABasis) -> Any:
    """A row per object: where it is, its template, and what D numbers make of it."""
    from matplotlib import pyplot as plt

    chosen = shapes.one_of_each()
    figure, axes = plt.subplots(len(chosen), 2 + len(DIMS), figsize=(8.5, 1.75 * len(chosen)), layout="constrained")
    titles = ["object in its box", f"template, {SIZE} x {SIZE}", *(f"{dim} coefficients" for dim in DIMS)]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for row, i in zip(axes, chosen, strict=True):
        image, (x0, y0, x1, y1) = shapes.images[shapes.objects[i][0]], shapes.boxes[i].round().astype(int)
        row[0].imshow(image[y0:y1, x0:x1], aspect="auto")
        row[1].imshow(shapes.templates[i], cmap="gray")
        for axis, dim in zip(row[2:], DIMS, strict=True):
            mask = reconstructed(basis, shapes.templates[i], dim)
            found = mask >= 0.5
            iou = (found & shapes.templates[i]).sum() / (found | shapes.templates[i]).sum()
            axis.imshow(mask, cmap="gray", vmin=0, vmax=1)
            axis.set_xlabel(f"IoU {iou:.2f}", fontsize=8, labelpad=1)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    return figure


def draw_components(basis: PCABasis) -> Any:
    """The mean, the first components, and how much of the variance they hold."""
    import numpy as np
    from matplotlib import pyplot as plt

    from meinst_d2.fitting.report import show_components

    figure = plt.figure(figsize=(10, 2.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    show_components(left.subplots(2, 6).ravel(), basis)
    axis = right.subplots()
    axis.plot(np.arange(1, 101), basis.explained_variance_ratio[:100].cumsum())
    axis.set(xlabel="components", ylabel="share of the variance", ylim=(0, 1))
    axis.grid(alpha=0.3)
    return figure


def draw_assignment(shapes: Shapes) -> Any:
    """The locations of each level that are assigned to an object, on one image."""
    import torch
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    from meinst_d2.fcos.assign import AssignmentRule, assign_batch
    from meinst_d2.fcos.boxes import level_locations

    of_image: dict[int, list[int]] = {}
    for i, (image, _) in enumerate(shapes.objects):
        of_image.setdefault(image, []).append(i)
    sides = (shapes.boxes[:, 2:] - shapes.boxes[:, :2]).max(1)
    image, chosen = max(of_image.items(), key=lambda item: sides[item[1]].max() - sides[item[1]].min())
    height, width = shapes.images[image].shape[:2]
    boxes = torch.from_numpy(shapes.boxes[chosen])
    level_shapes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    positives = assign_batch([boxes], level_shapes, AssignmentRule(STRIDES, SIZE_BOUNDS))
    locations = level_locations(level_shapes, STRIDES, "cpu")
    figure, axes = plt.subplots(1, len(STRIDES), figsize=(11, 3.9), layout="constrained")
    first = 0
    for axis, stride, of_level in zip(axes, STRIDES, locations, strict=True):
        axis.imshow(shapes.images[image], alpha=0.6)
        axis.plot(*of_level.T.numpy(), ".", color="white", ms=2)
        on_level = (positives.location_idx >= first) & (positives.location_idx < first + len(of_level))
        for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
            mine = positives.location_idx[on_level & (positives.gt_idx == number)] - first
            colour = plt.get_cmap("tab10")(number)
            axis.add_patch(
                Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=colour, lw=1.8 if len(mine) else 0.5)
            )
            axis.plot(*of_level[mine].T.numpy(), "o", color=colour, ms=5, mec="black")
        axis.set(xlim=(0, width), ylim=(height, 0))
        axis.set_title(f"stride {stride}", fontsize=9)
        axis.set_axis_off()
        first += len(of_level)
    return figure


def draw_pasting(shapes: Shapes, basis: PCABasis) -> Any:
    """Probabilities, stretched over a box that leaves the image, and cut at one half; beside the squeezed form."""
    import torch
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    from meinst_d2.masks import paste_masks

    star = shapes.one_of_each()[1]
    template = torch.from_numpy(reconstructed(basis, shapes.templates[star], 60))[None]
    height, width, box = 120, 160, torch.tensor([[70.0, 20.0, 205.0, 130.0]])
    clipped = torch.tensor([[70.0, 20.0, 160.0, 120.0]])
    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained", width_ratios=(1, 1.6, 1.6))
    axes[0].imshow(template[0], cmap="viridis", vmin=0, vmax=1)
    axes[0].set_title("28 x 28 probabilities", fontsize=9)
    for axis, where, title in zip(
        axes[1:], (box, clipped), ("predicted box: the rest is cut off", "visible part: squeezed"), strict=True
    ):
        axis.imshow(paste_masks(template, where, height, width)[0], cmap="gray", extent=(0, width, height, 0))
        (x0, y0, x1, y1) = where[0].tolist()
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="tab:orange", lw=1.5))
        axis.set(xlim=(-10, 215), ylim=(140, -10), facecolor="#dddddd")
        axis.set_title(title, fontsize=9)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return figure


def save(figures: Sequence[tuple[str, Any]], folder: Path) -> None:
    """Write PNGs of 256 colours, a third of the size of full ones."""
    from PIL import Image

    from meinst_d2.files import atomic_path

    for name, figure in figures:
        path = folder / f"method_{name}.png"
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=100)
            Image.open(temporary).convert("RGB").quantize(256).save(temporary, optimize=True)
        print(f"wrote {path}")


def main() -> None:
    args = parse_args()
    import matplotlib

    matplotlib.use("Agg")
    shapes = Shapes(args.images)
    basis = shapes.basis()
    pictures = [
        ("encoding", draw_encoding(shapes, basis)),
        ("components", draw_components(basis)),
        ("assignment", draw_assignment(shapes)),
        ("pasting", draw_pasting(shapes, basis)),
    ]
    save(pictures, args.output)


if __name__ == "__main__":
    main()
