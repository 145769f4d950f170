"""Detectron2's visualizers, with holes left open and class names as they are written, and sheets of images.

Detectron2 fills the outline of a hole like that of an object, so that a ring looks like a disc, and what stands between
two dollar signs is a formula to matplotlib.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances
from detectron2.utils.colormap import random_color
from detectron2.utils.video_visualizer import VideoVisualizer, _DetectedInstance
from detectron2.utils.visualizer import GenericMask, VisImage, Visualizer, _create_text_labels
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from meinst_d2.data.coco import listed
from meinst_d2.data.image_files import read_image
from meinst_d2.files import atomic_path
from meinst_d2.masks.paste import paste_masks

MOST_LABELED = 40
"""With more masks than this in an image, boxes and labels would hide them."""


def use_font(path: str | os.PathLike[str]) -> None:
    """Draw every text of this process in a font; for what it lacks, in those that were used before.

    Args:
        path: a .ttf, .otf or .ttc file.

    Raises:
        ValueError: there is no such file, or it is not a font.
    """
    try:
        font_manager.fontManager.addfont(path)
        name = FontProperties(fname=os.fspath(path)).get_name()
    except (OSError, RuntimeError, ValueError) as error:  # the latter of FreeType
        raise ValueError(f"{path} is not a font that matplotlib can read: name a .ttf, .otf or .ttc file") from error
    matplotlib.rcParams["font.family"] = [name, *matplotlib.rcParams["font.family"]]


@functools.cache
def warn_of_missing_glyphs(names: tuple[str, ...], families: tuple[str, ...]) -> None:
    """Say once, in a sentence, which names will be drawn with squares.

    Args:
        names: of classes.
        families: of fonts, matplotlib's ``font.family``.
    """
    fonts = [font_manager.get_font(font_manager.findfont(FontProperties(family=[family]))) for family in families]
    known = {code for font in fonts for code in font.get_charmap()}
    missing = [name for name in names if any(c.isprintable() and ord(c) not in known for c in name)]
    if missing:
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing")  # matplotlib's, one for every character
        logging.getLogger(__name__).warning(
            f"the font {fonts[0].family_name} lacks characters of {listed(missing, 3)}, which are drawn as squares: "
            "choose a font that has them (meinst predict --font FILE, or font.family in a matplotlibrc)"
        )


class MaskVisualizer(Visualizer):
    """Detectron2's Visualizer; masks are filled pixel by pixel, and also taken from ``pred_masks_rle``."""

    def draw_text(self, text: str, position: Any, **kwargs: Any) -> VisImage:
        """Like Detectron2's, in matplotlib's ``font.family``, and ``$`` is a dollar sign."""
        families = tuple(matplotlib.rcParams["font.family"])
        warn_of_missing_glyphs(tuple(self.metadata.get("thing_classes", ())), families)
        output = super().draw_text(text, position, **kwargs)
        output.ax.texts[-1].set(parse_math=False, fontfamily=list(families))
        return output

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Like Detectron2's, with boxes, labels and masks in either form.

        Args:
            predictions: on the CPU, of the image that is drawn on.
            jittering: unused, as in Detectron2's default mode.
        """
        names = self.metadata.get("thing_classes", None)
        labels = _create_text_labels(predictions.pred_classes.tolist(), predictions.scores, names)
        return self.overlay_instances(boxes=predictions.pred_boxes, masks=masks_of(predictions), labels=labels)

    def overlay_instances(
        self,
        *,
        masks: Any = None,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
        **kwargs: Any,
    ) -> VisImage:
        """Like Detectron2's: the largest mask is painted first, then outlines, boxes and labels are drawn.

        Above ``MOST_LABELED`` masks, boxes and labels are left out.
        """
        if masks is not None and len(masks) > MOST_LABELED:
            boxes, labels = None, None
        if masks is not None and len(masks):
            masks = self._convert_masks(masks)
            if assigned_colors is None:
                assigned_colors = [random_color(rgb=True, maximum=1) for _ in masks]
            self._fill(masks, assigned_colors, alpha)
            alpha = 0.0  # Detectron2 draws the outlines alone
        return super().overlay_instances(
            masks=masks, boxes=boxes, labels=labels, assigned_colors=assigned_colors, alpha=alpha, **kwargs
        )

    def _fill(self, masks: Sequence[GenericMask], colors: Sequence[Any], alpha: float) -> None:
        height, width = self.output.height, self.output.width
        paint = np.zeros((height, width, 3), np.float32)  # premultiplied
        transparency = np.ones((height, width, 1), np.float32)
        for i in np.argsort([-int(mask.area()) for mask in masks], kind="stable"):
            inside = masks[i].mask.astype(bool)
            paint[inside] = paint[inside] * (1 - alpha) + alpha * np.array(matplotlib.colors.to_rgb(colors[i]))
            transparency[inside] *= 1 - alpha
        opacity = 1 - transparency
        rgba = np.concatenate((paint / np.maximum(opacity, 1e-6), opacity), axis=2)
        self.output.ax.imshow(rgba.clip(0, 1), extent=(0, width, height, 0), interpolation="nearest")


class MaskVideoVisualizer(VideoVisualizer):
    """Detectron2's VideoVisualizer, which keeps an object's colour from frame to frame, drawing as above."""

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """
        Args:
            frame: (H, W, 3) uint8 RGB.
            predictions: of the frame, on the CPU.
        """
        visualizer = MaskVisualizer(frame, self.metadata)
        if not len(predictions):
            return visualizer.output
        boxes, classes = predictions.pred_boxes.tensor.numpy(), predictions.pred_classes.numpy()
        found = [
            _DetectedInstance(label, box, mask_rle=None, color=None, ttl=8)
            for label, box in zip(classes, boxes, strict=True)
        ]
        labels = _create_text_labels(classes, predictions.scores, self.metadata.get("thing_classes", None))
        masks = masks_of(predictions)
        return visualizer.overlay_instances(
            boxes=boxes if masks is None else None,  # beside masks they distract
            masks=masks,
            labels=labels,
            assigned_colors=self._assign_colors(found),
        )


def masks_of(predictions: Instances) -> Any:
    """Bit masks or COCO encodings, whichever there are, or None."""
    if predictions.has("pred_masks_rle"):
        return list(predictions.pred_masks_rle)
    return predictions.pred_masks if predictions.has("pred_masks") else None


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
    figure = Figure(figsize=(columns * 2 * width / 100, rows * width / 100))
    axes = figure.subplots(rows, columns, squeeze=False)
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


def draw_samples(
    path: str | os.PathLike[str],
    samples: Sequence[Mapping[str, Any]],
    image_format: str,
    class_names: Sequence[str],
    *,
    columns: int = 6,
    width: int = 320,
) -> None:
    """Training samples as the network gets them: augmented, with their boxes and what their templates cover.

    Args:
        path: the picture.
        samples: of the training loader: ``image``, and ``instances`` in its pixels, with templates or without.
        image_format: as in ``INPUT.FORMAT``.
        class_names: of the dataset.
        columns: samples side by side.
        width: of one, in pixels.
    """
    columns = max(1, min(columns, len(samples)))
    rows = max(1, -(-len(samples) // columns))
    figure = Figure(figsize=(columns * width / 100, rows * width / 100))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, sample in zip(axes, samples, strict=False):
        image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
        truth, masks = sample["instances"], None
        if truth.has("gt_mask_templates"):
            masks = paste_masks(truth.gt_mask_templates.float(), truth.gt_boxes.tensor, *truth.image_size).numpy()
        visualizer = MaskVisualizer(image, scale=width / max(image.shape[:2]))
        labels = [class_names[label] for label in truth.gt_classes.tolist()]
        axis.imshow(visualizer.overlay_instances(boxes=truth.gt_boxes, masks=masks, labels=labels).get_image())
    figure.subplots_adjust(0.003, 0.003, 0.997, 0.997, 0.02, 0.02)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
