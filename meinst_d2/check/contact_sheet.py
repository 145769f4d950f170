"""A picture of sampled annotations: the bad ones first, framed in red, with what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from meinst_d2.check.images import open_image
from meinst_d2.check.problem import Problem
from meinst_d2.check.scan import CocoFile
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.files import atomic_path
from meinst_d2.masks.rle import UnusableInstance, decode_rle, usable_polygons

TILE = 208
CAPTION = 32
MARGIN = 4
COLUMNS = 8
CONTEXT = 0.3
"""Of the box, on every side of it."""
SMALLEST_VIEW = 24.0
"""Pixels of the image that a tile shows at least."""
LARGEST_COORDINATE = 1e6
BAD_SHARE = 0.5
MASK_COLOR, BOX_COLOR, GOOD, BAD = (40, 255, 60), (255, 210, 0), (90, 90, 90), (230, 30, 40)


def draw_contact_sheet(
    path: str | os.PathLike[str],
    file: CocoFile,
    folder: str | os.PathLike[str] | None,
    problems: Sequence[Problem],
    samples: int = 48,
    seed: int = 0,
) -> None:
    """Draw sampled annotations, each with its mask, its box and its class.

    Args:
        path: the picture.
        file: scanned and checked.
        folder: of the images; None, or an image that cannot be read, leaves the ground grey.
        problems: of annotations, that make one bad.
        samples: how many; up to half of them bad ones, of as many kinds as there are, or more where good ones lack.
        seed: of the sampling.
    """
    rows = sample_rows(file, problems, samples, seed)
    columns = min(COLUMNS, max(1, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    sheet = Image.new("RGB", (columns * (TILE + MARGIN) + MARGIN, lines * (TILE + CAPTION + MARGIN) + MARGIN), "white")
    for number, row in enumerate(rows):
        line, column = divmod(number, columns)
        at = (MARGIN + column * (TILE + MARGIN), MARGIN + line * (TILE + CAPTION + MARGIN))
        sheet.paste(_draw_tile(file, row, folder, problems), at)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def sample_rows(file: CocoFile, problems: Sequence[Problem], samples: int, seed: int = 0) -> list[int]:
    """Rows of bad annotations, kind by kind in turn, then of good ones of every class in turn."""
    rng = np.random.default_rng(seed)
    bad = _in_turn([np.flatnonzero(file.having(problem)) for problem in problems], samples, rng)
    good_flags = ~file.having(*problems)
    categories = file.annotations.categories
    by_class = [np.flatnonzero(good_flags & (categories == k)) for k in range(len(file.classes))]
    good = _in_turn(by_class, samples, rng)
    room = max(round(samples * BAD_SHARE), samples - len(good))
    bad = bad[:room]
    return bad + good[: samples - len(bad)]


def _in_turn(groups: list[npt.NDArray[np.int64]], count: int, rng: np.random.Generator) -> list[int]:
    """Up to ``count`` different rows, one of each group after another."""
    orders = [rng.permutation(group)[:count].tolist() for group in groups if len(group)]
    found: dict[int, None] = {}
    for nth in range(count):
        for order in orders:
            if nth < len(order):
                found[order[nth]] = None
    return list(found)[:count]


def _draw_tile(
    file: CocoFile, row: int, folder: str | os.PathLike[str] | None, problems: Sequence[Problem]
) -> Image.Image:
    annotation, image_row = file.annotations[row], int(file.image_rows[row])
    wrong = [problem.key for problem in problems if file.flags[row] & np.uint32(problem.bit)]
    tile = Image.new("RGB", (TILE, TILE + CAPTION), BAD if wrong else GOOD)
    view = _view(annotation)
    ground = Image.new("RGB", (TILE, TILE), (128, 128, 128))
    name = file.names[image_row] if image_row >= 0 else ""
    if folder is not None and name:
        try:
            image = open_image(str(Path(folder) / name))
            ground = image.crop(tuple(round(v) for v in view)).resize((TILE, TILE), Image.Resampling.BILINEAR)  # type: ignore[arg-type]
        except Exception:  # the report says what is wrong with it
            wrong = wrong or ["image cannot be read"]
    drawn = _draw_mask(ground, annotation, view)
    pen = ImageDraw.Draw(drawn)
    corners = _to_tile(np.nan_to_num(np.array(annotation.box)).reshape(2, 2), view)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    pen.rectangle((x0, y0, x1, y1), outline=BOX_COLOR, width=2)
    tile.paste(drawn.crop((3, 3, TILE - 3, TILE - 3)), (3, 3))
    title = file.classes[annotation.category] if annotation.category >= 0 else "(no class)"
    title += " (crowd)" if annotation.iscrowd else ""
    pen = ImageDraw.Draw(tile)
    font = ImageFont.load_default()
    pen.text((5, TILE + 2), f"{title}  {file.annotation_ids[row]}"[:34], fill="white", font=font)
    pen.text((5, TILE + 16), (", ".join(wrong) or name)[-34:], fill="white", font=font)
    return tile


def _view(annotation: InstanceAnnotation) -> tuple[float, float, float, float]:
    """The square of the image that a tile shows: box and mask, with what is around."""
    points = [np.nan_to_num(np.array(annotation.box)).reshape(2, 2)]
    if isinstance(annotation.segmentation, list):
        with suppress(UnusableInstance):
            points += [part.reshape(-1, 2) for part in usable_polygons(annotation.segmentation)]
    every = np.concatenate(points).clip(-LARGEST_COORDINATE, LARGEST_COORDINATE)
    low, high = every.min(axis=0), every.max(axis=0)
    side = max(SMALLEST_VIEW, float((high - low).max()) * (1 + 2 * CONTEXT))
    x, y = ((low + high) / 2).tolist()
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def _to_tile(points: npt.NDArray[np.float64], view: tuple[float, float, float, float]) -> npt.NDArray[np.float64]:
    scale = TILE / (view[2] - view[0])
    return ((points - view[:2]) * scale).clip(-TILE, 2 * TILE)


def _draw_mask(
    ground: Image.Image, annotation: InstanceAnnotation, view: tuple[float, float, float, float]
) -> Image.Image:
    mask = Image.new("L", (TILE, TILE), 0)
    segmentation: Any = annotation.segmentation
    try:
        if isinstance(segmentation, Mapping):
            height, width = annotation.image_size
            whole = Image.fromarray(decode_rle(segmentation, height, width) * np.uint8(255))
            mask = whole.crop(tuple(round(v) for v in view)).resize((TILE, TILE))  # type: ignore[arg-type]
        else:
            pen = ImageDraw.Draw(mask)
            for part in usable_polygons(segmentation or ()):
                outline = [tuple(point) for point in _to_tile(part.reshape(-1, 2), view).tolist()]
                pen.polygon(outline, fill=255)
    except (UnusableInstance, ValueError, TypeError):
        return ground
    color = Image.new("RGB", ground.size, MASK_COLOR)
    tinted = Image.composite(Image.blend(ground, color, 0.4), ground, mask)
    edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))
    return Image.composite(color, tinted, edge)
