#!/usr/bin/env python
"""Detect objects in images with an exported model, and draw them: onnxruntime, numpy and Pillow are all it needs."""

from __future__ import annotations

import argparse
import colorsys
import json
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont, ImageOps

EXAMPLES = """example:
  python deploy/predict_onnx.py model.onnx photo.jpg --output output/predictions

For each image it writes OUTPUT/NAME.png and prints what it found. An image that cannot be read is reported and passed
over; the exit status is 1 if none could be read.
"""
UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged, not images, or so large that it takes them for an attack."""


@dataclass
class Detections:
    """Of one image, in its pixels: boxes (n, 4), scores (n,), classes (n,), masks (n, height, width) bool."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray


class Predictor:
    """An exported model."""

    def __init__(self, path: str) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no {path}: make it with meinst export")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.about = self.session.get_modelmeta().custom_metadata_map
        self.class_names: list[str] = json.loads(self.about["class_names"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, image: Image.Image, score_threshold: float = 0.0) -> Detections:
        """Detect in an RGB image."""
        pixels = self.preprocess(image)
        height, width = pixels.shape[1:]
        divisor = int(self.about["size_divisibility"])
        batch = np.zeros((1, 3, -(-height // divisor) * divisor, -(-width // divisor) * divisor), np.float32)
        batch[0, :, :height, :width] = pixels
        inputs = {"images": batch, "image_sizes": np.array([[height, width]], np.int64)}
        found = dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))
        keep = found["scores"] >= score_threshold
        found = {name: value[keep] for name, value in found.items()}
        scale = np.array([image.width / width, image.height / height] * 2, np.float32)
        masks = np.zeros((int(keep.sum()), image.height, image.width), bool)
        if "masks" in found:
            for mask, template, box in zip(masks, found["masks"], found["mask_boxes"] * scale, strict=True):
                paste(mask, template, box)
        return Detections(found["boxes"] * scale, found["scores"], found["classes"], masks)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Resize as the model was tested: (3, height, width) float32, channels in its order."""
        shortest, longest = int(self.about["min_size_test"]), int(self.about["max_size_test"])
        if shortest:
            factor = min(shortest / min(image.size), longest / max(image.size))
            size = [max(int(side * factor + 0.5), 1) for side in image.size]
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)
        return pixels[::-1] if self.about["input_format"] == "BGR" else pixels


def paste(mask: np.ndarray, template: np.ndarray, box: np.ndarray) -> None:
    """Stretch a template (S, S) over its box, bilinearly with zeros around it, and set the pixels where it is >= 1/2.

    The mask is (height, width) bool; the box is x0, y0, x1, y1 in pixels and may leave it.
    """
    size = len(template)
    padded = np.pad(template, 1)
    x, columns = sample(box[0], box[2], mask.shape[1], size)
    y, rows = sample(box[1], box[3], mask.shape[0], size)
    if not len(x) or not len(y):
        return
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_share, low_share = (x - left)[None, :], (y - top)[:, None]
    lines = padded[top] * (1 - low_share) + padded[top + 1] * low_share  # (rows, S + 2)
    mask[rows, columns] = lines[:, left] * (1 - right_share) + lines[:, left + 1] * right_share >= 0.5


def sample(low: float, high: float, length: int, size: int) -> tuple[np.ndarray, slice]:
    """Where the pixels of an axis lie in a padded template, and which pixels these are."""
    first, last = max(int(np.floor(low)) - 1, 0), min(int(np.ceil(high)) + 1, length)
    if high <= low or last <= first:
        return np.zeros(0), slice(0, 0)
    position = (np.arange(first, last) + 0.5 - low) / (high - low) * size + 0.5
    inside = np.flatnonzero((position >= 0) & (position < size + 1))
    if not len(inside):
        return np.zeros(0), slice(0, 0)
    return position[inside], slice(first + int(inside[0]), first + int(inside[-1]) + 1)


def draw(image: Image.Image, detections: Detections, class_names: list[str], font: Any = None) -> Image.Image:
    """The image with masks, boxes, names and scores; the highest score on top."""
    pixels = np.asarray(image.convert("RGB"), np.float32).copy()
    colours = [tuple(int(255 * c) for c in colorsys.hsv_to_rgb(i * 0.618 % 1, 0.8, 1)) for i in range(len(class_names))]
    order = range(len(detections.scores) - 1, -1, -1)
    for i in order:
        mask = detections.masks[i]
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(colours[detections.classes[i]])
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for i in order:
        x0, y0, x1, y1 = detections.boxes[i].tolist()
        colour = colours[detections.classes[i]]
        pen.rectangle((x0, y0, x1, y1), outline=colour)
        text = f"{class_names[detections.classes[i]]} {detections.scores[i]:.2f}"
        at = (x0 + 2, max(y0 - 11, 0))
        pen.rectangle(pen.textbbox(at, text, font=font), fill=(0, 0, 0))
        pen.text(at, text, fill=colour, font=font)
    return picture


def read_image(path: Path) -> Image.Image:
    """An image in RGB, turned as its camera says; raises one of :data:`UNREADABLE`."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # Pillow would make every value above 255 white
        print(f"predict_onnx.py: of the 16 bits per pixel of {path} the upper 8 are taken", file=sys.stderr)
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def plan_outputs(images: Sequence[Path], folder: Path) -> list[Path]:
    """A picture for every image, no two the same; a ValueError where it would replace one of the images."""
    originals, taken, targets = {path.resolve() for path in images}, set(), []
    for path in images:
        name, number = path.stem, 1
        while name.lower() in taken:  # some file systems do not tell A.png from a.png
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.lower())
        targets.append(folder / f"{name}.png")
        if targets[-1].resolve() in originals:
            raise ValueError(f"--output {folder} would replace the input {targets[-1]}: name another folder")
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="from meinst export --format onnx")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--output", type=Path, default=Path("output/predictions"), help="folder (default %(default)s)")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="least score to draw (default %(default)s)")
    parser.add_argument("--font", help="a .ttf or .otf file that has the class names' script")
    args = parser.parse_args()
    try:
        targets = plan_outputs(args.images, args.output)
        font = ImageFont.truetype(args.font, 11) if args.font else ImageFont.load_default()
        predictor = Predictor(args.model)
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        sys.exit(f"predict_onnx.py: {error}")
    if not args.font and max("".join(predictor.class_names), default="") > "\xff":
        print("predict_onnx.py: class names beyond Latin may be drawn as squares: give --font FILE", file=sys.stderr)
    num_read = 0
    for path, target in zip(args.images, targets, strict=True):
        try:
            image = read_image(path)
        except UNREADABLE as error:
            print(f"predict_onnx.py: the image {path} cannot be read: {error}", file=sys.stderr)
            continue
        num_read += 1
        found = predictor(image, args.score_threshold)
        draw(image, found, predictor.class_names, font).save(target)
        pairs = zip(found.classes, found.scores, strict=True)
        names = ", ".join(f"{predictor.class_names[c]} {s:.2f}" for c, s in pairs)
        print(f"{path}: {len(found.scores)} objects ({names or 'none'}) -> {target}")
    sys.exit(num_read == 0)


if __name__ == "__main__":
    main()
