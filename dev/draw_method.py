#!/usr/bin/env python
"""Draw the pictures of docs/how-it-works.md from generated shapes: encoding, components, assignment, pasting.

With a model that refines its masks, draw the one of docs/better-masks.md instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  dev/draw_method.py
  dev/draw_method.py --weights output/demo/model_final.pth          # after make demo
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
    parser.add_argument("--weights", metavar="FILE", help="of a model of generated shapes that refines its masks")
    parser.add_argument("--images", type=int, default=600, help="generated, to fit components to (default 600)")
    return parser.parse_args()


class Shapes:
    """Generated images and the templates of their objects.

    Args:
        count: images.
        split: 0 for those that models of generated shapes are trained on, 1 for those held out.
    """

    def __init__(self, count: int, split: int = 0) -> None:
        import numpy as np

        from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation
        from meinst_d2.data.instances import make_templates
        from meinst_d2.data.shapes import ShapesConfig, draw_image

        config = ShapesConfig()
        drawn = [draw_image(config, (0, split, i)) for i in range(count)]
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


def draw_refinement(shapes: Shapes, weights: str) -> Any:
    """A row per object: where a detection is looked at again, what its code draws there, and the refined mask."""
    import torch
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle
    from torchvision.ops import box_iou

    import meinst_d2
    from meinst_d2.masks import paste_masks
    from meinst_d2.modeling.refinement import resample

    model = meinst_d2.load(weights).model
    generator = model.proposal_generator
    look, generator.refinement = generator.refinement, None
    if look is None:
        raise SystemExit(f"{weights} do not refine masks: MODEL.MEINST.REFINE.ENABLED was False in their training")
    chosen = shapes.one_of_each()
    figure, axes = plt.subplots(len(chosen), 4, figsize=(7.2, 1.8 * len(chosen)), layout="constrained")
    titles = "predicted box, enlarged", "mask of the code", f"refined, {look.mask_size} x {look.mask_size}", "outlines"
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for row, i in zip(axes, chosen, strict=True):
        image = shapes.images[shapes.objects[i][0]]
        height, width = image.shape[:2]
        pixels = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)
        with torch.no_grad():
            images = model.preprocess_image([{"image": pixels}])
            features = model.backbone(images.tensor)
            found = generator(images, features)[0][0]
            best = box_iou(torch.from_numpy(shapes.boxes[i])[None], found.pred_boxes.tensor).argmax(1)
            box, code = found.pred_boxes.tensor[best], found.pred_masks[best, 0]
            seen = look.look(features, box, found.scores[best], found.pred_classes[best], torch.zeros_like(best), code)
        region, mask = seen.mask_boxes, seen.masks
        (x0, y0, x1, y1), (left, top, right, bottom) = box[0].tolist(), region[0].tolist()
        row[0].imshow(image)
        row[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="white", lw=1.5))
        row[1].imshow(resample(code, box, region, look.mask_size)[0], cmap="gray", vmin=0, vmax=1)
        row[2].imshow(mask[0], cmap="gray", vmin=0, vmax=1)
        row[3].imshow(image, alpha=0.35)
        for probabilities, where, colour in ((code, box, "tab:orange"), (mask, region, "black")):
            drawn = paste_masks(probabilities, where, height, width)[0]
            row[3].contour(drawn.float(), [0.5], colors=colour, linewidths=1.3)
        for axis in row[::3]:
            axis.set(xlim=(left, right), ylim=(bottom, top))
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[], aspect="auto")
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
    if args.weights:
        return save([("refinement", draw_refinement(Shapes(100, split=1), args.weights))], args.output)
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
