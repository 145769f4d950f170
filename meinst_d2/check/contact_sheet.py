"""A picture of sampled annotations: the bad ones first, framed in red, with what is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from meinst_d2.check import Rule
from meinst_d2.check.coco_file import CocoFile
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.image_files import read_image
from meinst_d2.files import atomic_path
from meinst_d2.masks.rle import UnusableInstance, decode_rle, usable_polygons

TILE, CAPTION, MARGIN, COLUMNS = 208, 32, 4, 8
CONTEXT = 0.3
"""Of the box, on every side of it."""
SMALLEST_VIEW, LARGEST_COORDINATE = 24.0, 1e6
"""Pixels of the image that a tile shows at least, and how far from its origin at most."""
MASK_COLOR, BOX_COLOR, GOOD, BAD = (40, 255, 60), (255, 210, 0), (90, 90, 90), (230, 30, 40)

View = tuple[float, float, float, float]
"""The square of the image that a tile shows, ``xyxy``."""


def draw_contact_sheet(
    path: str | os.PathLike[str],
    file: CocoFile,
    folder: str | os.PathLike[str] | None,
    rules: Sequence[Rule],
    samples: int = 48,
) -> None:
    """Draw sampled annotations of a checked file, each with its mask, its box and its class.

    Args:
        path: the picture.
        file, folder: of the images; without a folder, or an image that can be read, the ground is grey.
        rules: about annotations, that make one bad.
        samples: how many; up to half of them bad ones, of as many kinds as there are, or more where good ones lack.
    """
    rows = sample_rows(file, rules, samples)
    columns = min(COLUMNS, max(1, len(rows)))
    lines = max(1, -(-len(rows) // columns))
    width, height = TILE + MARGIN, TILE + CAPTION + MARGIN
    sheet = Image.new("RGB", (columns * width + MARGIN, lines * height + MARGIN), "white")
    for number, row in enumerate(rows):
        line, column = divmod(number, columns)
        sheet.paste(_draw_tile(file, row, folder, rules), (MARGIN + column * width, MARGIN + line * height))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def sample_rows(file: CocoFile, rules: Sequence[Rule], samples: int) -> list[int]:
    """Rows of bad annotations, kind by kind in turn, then of good ones of every class in turn."""
    rng = np.random.default_rng(0)

    def in_turn(groups: list[npt.NDArray[np.int64]]) -> list[int]:
        orders = [rng.permutation(group)[:samples].tolist() for group in groups]
        turns = (order[nth] for nth in range(samples) for order in orders if nth < len(order))
        return list(dict.fromkeys(turns))[:samples]

    bad = in_turn([np.flatnonzero(file.having(rule)) for rule in rules])
    is_good, categories = ~file.having(*rules), file.annotations.categories
    good = in_turn([np.flatnonzero(is_good & (categories == k)) for k in range(len(file.classes))])
    bad = bad[: max(round(samples / 2), samples - len(good))]
    return bad + good[: samples - len(bad)]


def _draw_tile(file: CocoFile, row: int, folder: str | os.PathLike[str] | None, rules: Sequence[Rule]) -> Image.Image:
    annotation, image_row = file.annotations[row], int(file.image_rows[row])
    wrong = [rule.key for rule in rules if file.flags[row] & rule.bit]
    tile = Image.new("RGB", (TILE, TILE + CAPTION), BAD if wrong else GOOD)
    view = _view(annotation)
    ground = Image.new("RGB", (TILE, TILE), (128, 128, 128))
    name = file.names[image_row] if image_row >= 0 else ""
    if folder is not None and name:
        try:
            ground = _seen(Image.fromarray(read_image(os.path.join(folder, name), "RGB")), view)
        except Exception:  # the report says what is wrong with it
            wrong = wrong or ["image cannot be read"]
    drawn = _draw_mask(ground, annotation, view)
    corners = _to_tile(np.nan_to_num(np.array(annotation.box)).reshape(2, 2), view)
    (x0, y0), (x1, y1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    ImageDraw.Draw(drawn).rectangle((x0, y0, x1, y1), outline=BOX_COLOR, width=2)
    tile.paste(drawn.crop((3, 3, TILE - 3, TILE - 3)), (3, 3))
    title = file.classes[annotation.category] if annotation.category >= 0 else "(no class)"
    title += " (crowd)" if annotation.iscrowd else ""
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default()
    pen.text((5, TILE + 2), f"{title}  {file.annotation_ids[row]}"[:34], fill="white", font=font)
    pen.text((5, TILE + 16), (", ".join(wrong) or name)[-34:], fill="white", font=font)
    return tile


def _view(annotation: InstanceAnnotation) -> View:
    """Box and mask, with what is around."""
    points = [np.nan_to_num(np.array(annotation.box)).reshape(2, 2)]
    if isinstance(annotation.segmentation, list):
        with suppress(UnusableInstance):
            points += [part.reshape(-1, 2) for part in usable_polygons(annotation.segmentation)]
    every = np.concatenate(points).clip(-LARGEST_COORDINATE, LARGEST_COORDINATE)
    low, high = every.min(axis=0), every.max(axis=0)
    side = max(SMALLEST_VIEW, float((high - low).max()) * (1 + 2 * CONTEXT))
    x, y = ((low + high) / 2).tolist()
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def _seen(image: Image.Image, view: View) -> Image.Image:
    x0, y0, x1, y1 = map(round, view)
    return image.crop((x0, y0, x1, y1)).resize((TILE, TILE), Image.Resampling.BILINEAR)


def _to_tile(points: npt.NDArray[np.float64], view: View) -> npt.NDArray[np.float64]:
    return ((points - view[:2]) * (TILE / (view[2] - view[0]))).clip(-TILE, 2 * TILE)


def _draw_mask(ground: Image.Image, annotation: InstanceAnnotation, view: View) -> Image.Image:
    segmentation, mask = annotation.segmentation, Image.new("L", (TILE, TILE), 0)
    try:
        if isinstance(segmentation, Mapping):
            mask = _seen(Image.fromarray(decode_rle(segmentation, *annotation.image_size) * np.uint8(255)), view)
        for part in () if isinstance(segmentation, Mapping) else usable_polygons(segmentation or ()):
            outline = [tuple(point) for point in _to_tile(part.reshape(-1, 2), view).tolist()]
            ImageDraw.Draw(mask).polygon(outline, fill=255)
    except (ValueError, TypeError, Image.DecompressionBombError):
        return ground
    color = Image.new("RGB", ground.size, MASK_COLOR)
    tinted = Image.composite(Image.blend(ground, color, 0.4), ground, mask)
    edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(3)))
    return Image.composite(color, tinted, edge)
