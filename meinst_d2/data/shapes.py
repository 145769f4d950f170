"""A generated COCO-format dataset whose shapes are hard to describe by their outline.

Rings have holes, cut discs have two parts, stars and crescents are concave, bars are thin, blobs are irregular; objects
overlap, a few images hold crowd regions and a few hold nothing. Every image is a function of (seed, split, number).
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from meinst_d2.files import atomic_path
from meinst_d2.masks.rasterize import BoolArray
from meinst_d2.masks.rle import decode_rle, rle_of, runs_of, tight_window

SPLITS = ("train", "val")
LEAST_VISIBLE = 0.7
"""Share of an object that later ones leave uncovered."""
TRIES = 4
"""Times that an object is drawn again when it does not fit."""
MOST_OVERLAP = 0.4
"""Of two boxes, over the smaller: objects one inside the other would have to share their locations."""

Outline = npt.NDArray[np.float64]
"""(n, 2) points (x, y)."""
Random = np.random.Generator


@dataclass(frozen=True)
class ShapesConfig:
    """What the images look like."""

    height: int = 160  # of every image, in pixels
    width: int = 160
    min_objects: int = 2  # to place, uniformly; one that does not fit is tried elsewhere
    max_objects: int = 9
    min_side: float = 20  # of an object's extent, in pixels; log-uniform
    max_side: float = 96
    empty: float = 0.04  # share of images without objects
    crowd: float = 0.06  # share of images with a crowd region


def generate(
    root: str | os.PathLike[str],
    num_images: dict[str, int],
    config: ShapesConfig = ShapesConfig(),
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Write images to ``root/SPLIT/`` and annotations to ``root/annotations/instances_SPLIT.json``.

    Args:
        root, config: the folder, and what the images look like.
        num_images: by split, "train" and "val".
        seed, workers: not negative, the same one gives the same pixels for any number of workers, which are processes.
    """
    size = {"height": config.height, "width": config.width}
    for split, count in num_images.items():
        folder = Path(root) / split
        folder.mkdir(parents=True, exist_ok=True)
        work = partial(_write_image, folder, config, (seed, SPLITS.index(split)))
        context = multiprocessing.get_context("fork")
        images, annotations = [], []
        with threadpool_limits(1), ProcessPoolExecutor(workers, mp_context=context) as pool:
            results = pool.map(work, range(count), chunksize=16)
            drawn = tqdm(results, total=count, desc=f"drawing {split:5}", unit=" images", dynamic_ncols=True)
            for image_id, (name, of_image) in enumerate(drawn, 1):
                images.append({"id": image_id, "file_name": name, **size})
                for annotation in of_image:
                    annotations.append({**annotation, "id": len(annotations) + 1, "image_id": image_id})
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
        content = {"info": {"description": "meinst_d2 generated shapes"}, "images": images, "annotations": annotations}
        content["categories"] = categories
        with atomic_path(Path(root) / "annotations" / f"instances_{split}.json") as temporary:
            temporary.write_text(json.dumps(content))


def _write_image(folder: Path, config: ShapesConfig, seed: tuple[int, int], number: int) -> tuple[str, list[Any]]:
    image, annotations = draw_image(config, (*seed, number))
    name = f"{number:06d}.png"
    Image.fromarray(image).save(folder / name, compress_level=0)  # noise hardly gets smaller
    return name, annotations


def draw_image(config: ShapesConfig, seed: tuple[int, ...]) -> tuple[npt.NDArray[np.uint8], list[dict[str, Any]]]:
    """One image that depends on ``seed``, (H, W, 3) RGB, and its COCO annotations without ids."""
    rng = np.random.default_rng(seed)
    size = (config.height, config.width)
    background = rng.uniform(30, 225, 3).astype(np.float32)
    canvas = background + _texture(rng, size, 40)
    objects: list[_Object] = []
    if rng.random() >= config.empty:
        if rng.random() < config.crowd:
            objects.append(_crowd(rng, config))
        for _ in range(rng.integers(config.min_objects, config.max_objects + 1)):
            any(_try_to_add(objects, _random_object(rng, config)) for _ in range(TRIES))
    for item in objects:
        rows, columns = tight_window(item.full)
        part, region = item.full[rows, columns], canvas[rows, columns]
        region[part] = (_contrasting(rng, background) + _texture(rng, part.shape, 25))[part]
        if item.occluder is not None:
            canvas[item.occluder] = _warning_tape(size)[item.occluder]
    canvas += 5 * rng.standard_normal(canvas.shape, np.float32)
    return canvas.clip(0, 255).astype(np.uint8), [item.annotation() for item in objects]


@dataclass
class _Object:
    category: int
    full: BoolArray  # what it covers
    visible: BoolArray  # what later objects left of it
    occluder: BoolArray | None = None  # a strip drawn over it that is not an object itself
    polygons: list[Outline] | None = None  # None where only a bit mask can say it
    crowd: bool = False

    def annotation(self) -> dict[str, Any]:
        if self.polygons is not None and (self.visible == self.full).all():
            points = np.concatenate(self.polygons)
            low, high = points.min(0), points.max(0)
            segmentation: Any = [polygon.round(2).ravel().tolist() for polygon in self.polygons]
        else:
            rows, columns = tight_window(self.visible)
            low, high = np.array([columns.start, rows.start]), np.array([columns.stop, rows.stop])
            rle = rle_of(self.visible, self.visible.shape)
            counts = runs_of(rle, *rle["size"]).tolist() if self.crowd else rle["counts"].decode("ascii")
            segmentation = {"size": rle["size"], "counts": counts}
        return {
            "category_id": self.category + 1,
            "segmentation": segmentation,
            "bbox": [round(float(v), 2) for v in (*low, *(high - low))],
            "area": int(self.visible.sum()),
            "iscrowd": int(self.crowd),
        }


def _try_to_add(objects: list[_Object], new: _Object | None) -> bool:
    """Put an object on top if that leaves all of them recognisable; says whether it did."""
    if new is None:
        return False
    covering = new.full if new.occluder is None else new.full | new.occluder
    box = tight_window(new.full)
    for item in objects:
        visible = (item.visible & ~covering).sum()
        if visible < LEAST_VISIBLE * item.full.sum() or _overlap(tight_window(item.full), box) > MOST_OVERLAP:
            return False
    for item in objects:
        item.visible &= ~covering
    objects.append(new)
    return True


def _overlap(a: tuple[slice, slice], b: tuple[slice, slice]) -> float:
    """Intersection of two boxes over the area of the smaller."""
    common = math.prod(max(0, min(p.stop, q.stop) - max(p.start, q.start)) for p, q in zip(a, b, strict=True))
    return common / min(math.prod(side.stop - side.start for side in box) for box in (a, b))


def _random_object(rng: Random, config: ShapesConfig) -> _Object | None:
    category = int(rng.integers(len(CATEGORIES)))
    name = CATEGORIES[category]
    side = float(np.exp(rng.uniform(np.log(config.min_side), np.log(config.max_side))))
    size = (config.height, config.width)
    outlines = OUTLINES[name](rng, side)
    strip = outlines.pop() if name == "cut" else None
    points = np.concatenate(outlines)
    extent = np.ptp(points, axis=0)
    scale = side / extent.max()
    # A tenth of the objects leave the image, by up to a third of their extent.
    slack = np.array([config.width, config.height]) - extent * scale
    margin = extent * scale / 3 if rng.random() < 0.1 else np.zeros(2)
    if (slack < 0).any():
        return None
    corner = rng.uniform(-margin, slack + margin)
    shift = corner - points.min(0) * scale
    outlines = [outline * scale + shift for outline in outlines]
    full = _fill(outlines, size)
    if name == "ring":
        full &= ~_fill(outlines[1:], size)
    if full.sum() < 20:
        return None
    points = np.concatenate(outlines)
    inside = (points >= 0).all() and (points <= size[::-1]).all()
    return _Object(
        category,
        full,
        full.copy(),
        occluder=None if strip is None else _fill([strip * scale + shift], size) & ~full,
        polygons=outlines if inside and name != "ring" else None,
    )


def _crowd(rng: Random, config: ShapesConfig) -> _Object:
    """Many small blobs side by side, as one region."""
    size = (config.height, config.width)
    margin = np.minimum(30, np.array([config.width, config.height]) / 2)
    center = rng.uniform(margin, np.array([config.width, config.height]) - margin)
    region = np.zeros(size, bool)
    for _ in range(rng.integers(8, 15)):
        (outline,) = _blob_outlines(rng, 0)
        region |= _fill([outline * rng.uniform(4, 7) + center + rng.normal(0, 14, 2)], size)
    return _Object(CATEGORIES.index("blob"), region, region.copy(), crowd=True)


def _fill(outlines: list[Outline], size: tuple[int, int]) -> BoolArray:
    return decode_rle(rle_of([outline.ravel() for outline in outlines], size), *size).astype(np.bool_)


def _texture(rng: Random, size: tuple[int, ...], amplitude: float) -> npt.NDArray[np.float32]:
    """(H, W, 3) smooth noise and a grating, around zero."""
    height, width = size
    coarse = amplitude / 2 * rng.standard_normal((3, height // 16 + 2, width // 16 + 2), np.float32)
    smooth = _interpolation(height, coarse.shape[1]) @ coarse @ _interpolation(width, coarse.shape[2]).T  # (3, H, W)
    frequency, phase = rng.normal(0, 0.4, 2), rng.uniform(0, 2 * np.pi)
    # sin(a + b) from its factors: the sine of every pixel would take most of the time.
    a = (frequency[1] * np.arange(height) + phase).astype(np.float32)[:, None]
    b = (frequency[0] * np.arange(width)).astype(np.float32)
    grating = np.sin(a) * np.cos(b) + np.cos(a) * np.sin(b)
    color = amplitude / 3 * rng.standard_normal(3, np.float32)
    return np.ascontiguousarray(smooth.transpose(1, 2, 0)) + grating[..., None] * color


@cache
def _interpolation(length: int, knots: int) -> npt.NDArray[np.float32]:
    """(length, knots) linear interpolation weights."""
    at = np.linspace(0, knots - 1, length, dtype=np.float32)[:, None]
    return np.maximum(0, 1 - np.abs(at - np.arange(knots, dtype=np.float32)))


@cache
def _warning_tape(size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """(H, W, 3) black and white stripes: what cuts an object must not look like an object."""
    y, x = np.ogrid[: size[0], : size[1]]
    return np.where((x + y)[..., None] // 3 % 2, np.float32(235), np.float32(20)).repeat(3, axis=2)


def _contrasting(rng: Random, background: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A color that differs from the background's."""
    while True:
        color = rng.uniform(10, 245, 3).astype(np.float32)
        if np.abs(color - background).max() > 80:
            return color


# Outlines, in units of their own: whoever draws them scales them.


def _arc(angle: npt.NDArray[np.float64]) -> Outline:
    return np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _circle(points: int = 40) -> Outline:
    return _arc(np.linspace(0, 2 * np.pi, points, endpoint=False))


def _rotated(rng: Random, points: Any) -> Outline:
    angle = rng.uniform(0, 2 * np.pi)
    turned: Outline = points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return turned


def _ring_outlines(rng: Random, side: float) -> list[Outline]:
    outer = _rotated(rng, _circle() * [1, rng.uniform(0.7, 1)])
    return [outer, outer * rng.uniform(0.45, 0.6)]


def _star_outlines(rng: Random, side: float) -> list[Outline]:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1)
    return [_rotated(rng, _circle(10) * radius[:, None])]


def _crescent_outlines(rng: Random, side: float) -> list[Outline]:
    distance, radius = rng.uniform(0.45, 0.6), 0.8  # of the disc that is taken away
    tip = np.arccos((1 + distance**2 - radius**2) / (2 * distance))
    inner_tip = np.arctan2(np.sin(tip), np.cos(tip) - distance)
    outer, inner = np.linspace(tip, 2 * np.pi - tip, 30), np.linspace(2 * np.pi - inner_tip, inner_tip, 30)
    return [_rotated(rng, np.concatenate((_arc(outer), [distance, 0] + radius * _arc(inner))))]


def _bar_outlines(rng: Random, side: float) -> list[Outline]:
    aspect = max(2.0, min(rng.uniform(4, 6), side / 5))  # at least 5 pixels thick
    return [_rotated(rng, np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, 1 / aspect])]


def _cut_outlines(rng: Random, side: float) -> list[Outline]:
    """Two caps of an ellipse, and the strip between them."""
    half = max(rng.uniform(0.12, 0.2), 4 / side)  # of the strip's width
    start = np.arcsin(half)
    cap = _arc(np.linspace(start, np.pi - start, 20))
    strip = np.array([[-1.3, -half], [1.3, -half], [1.3, half], [-1.3, half]])
    stretch = [rng.uniform(0.7, 1), 1]
    joined = _rotated(rng, np.concatenate((cap, cap * [1, -1], strip)) * stretch)
    return [joined[:20], joined[20:40], joined[40:]]


def _blob_outlines(rng: Random, side: float) -> list[Outline]:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.35 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 6))
    return [_rotated(rng, _circle() * np.maximum(radius, 0.25)[:, None])]


OUTLINES: dict[str, Callable[[Random, float], list[Outline]]]
OUTLINES = {"ring": _ring_outlines, "star": _star_outlines, "crescent": _crescent_outlines}
OUTLINES |= {"bar": _bar_outlines, "cut": _cut_outlines, "blob": _blob_outlines}
"""By category: (generator, extent in pixels) -> outlines. A ring has its hole second, a cut disc its strip third."""
CATEGORIES = tuple(OUTLINES)
