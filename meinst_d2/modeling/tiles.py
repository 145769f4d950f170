"""Large images in overlapping tiles: each is an image of its own, and what several of them see of an object is joined.

In the strip where two tiles overlap, both see the same pixels, so the masks that they find of one object agree there.
That tells parts of one object from neighbours that touch, which the boxes alone cannot.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from torch import nn

from meinst_d2.masks import RLEs
from meinst_d2.masks.rle import runs_of, tight_window
from meinst_d2.modeling.inference import MaskOutput

AGREEMENT = 0.5
"""Least IoU of two masks in what two tiles share, for parts of one object."""
NEARLY = 0.25
"""Of an object's longer side: how much farther from the borders of its tile another tile must see it to count alone."""

Window = tuple[slice, slice]
"""Rows and columns of the image."""


@dataclass(frozen=True)
class Part:
    """What one tile has of an object."""

    window: Window  # of the tile
    score: float
    label: int
    box: npt.NDArray[np.float32]  # (4,) xyxy in the image
    at: Window  # the tight window of the mask in the image
    mask: npt.NDArray[np.bool_]  # there
    is_cut: bool  # by a border of the tile that is not the image's

    @property
    def tile(self) -> tuple[int, int]:
        """The top left corner of the tile, which tells it from others."""
        return self.window[0].start, self.window[1].start


def tile_windows(height: int, width: int, size: int, overlap: float) -> list[Window]:
    """Tiles of at most ``size`` pixels a side that cover an image, row by row.

    Neighbours share at least ``overlap`` of a tile's side; they are spread evenly, so that all have one size.
    """

    def starts(length: int) -> list[int]:
        if length <= size:
            return [0]
        count = 1 + int(np.ceil((length - size) / (size * (1 - overlap))))
        return np.linspace(0, length - size, count).round().astype(int).tolist()

    rows, columns = ([slice(at, min(at + size, length)) for at in starts(length)] for length in (height, width))
    return list(itertools.product(rows, columns))


class DetectorInTiles(nn.Module):
    """A detector that looks at an image tile by tile; inputs and outputs are those of the detector."""

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        size: int,
        overlap: float,
        resize: T.Augmentation,
        image_format: str,
        mask_output: MaskOutput = "bitmask",
    ) -> None:
        """
        Args:
            model: a detector of this project, in evaluation mode.
            size: side of a tile, in pixels of the image.
            overlap: least share of a tile's side that neighbours have in common, in [0, 1).
            resize: what brings a tile to the size that the network sees.
            image_format: as in ``INPUT.FORMAT``.
            mask_output: "bitmask" or "rle".

        Raises:
            ValueError: a value is out of range.
        """
        super().__init__()
        if size < 1 or not 0 <= overlap < 1:
            raise ValueError(
                f"TEST.TILES: SIZE = {size} must be at least 1, OVERLAP = {overlap} at least 0 and below 1"
            )
        if mask_output == "template":
            raise ValueError("MODEL.MEINST.MASK_OUTPUT = 'template': joined masks are not templates, choose another")
        self.model = copy.copy(model)  # the same parameters
        self.model.mask_output = "rle"
        self.size, self.overlap, self.resize, self.image_format = size, overlap, resize, image_format
        self.mask_output: MaskOutput = mask_output

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        return {
            "model": model,
            "size": cfg.TEST.TILES.SIZE,
            "overlap": cfg.TEST.TILES.OVERLAP,
            "resize": T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST),
            "image_format": cfg.INPUT.FORMAT,
            "mask_output": cfg.MODEL.MEINST.MASK_OUTPUT,
        }

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Args:
            batched_inputs: one dict per image: ``file_name``, or ``image`` (3, H, W) with values from 0 to 255.

        Returns:
            One ``{"instances": Instances}`` per image, of the image's size, on the CPU, the highest score first.
        """
        return [{"instances": self._joined(given)} for given in batched_inputs]

    def _joined(self, given: Mapping[str, Any]) -> Instances:
        if "file_name" in given:  # in all its pixels: "image" has been resized
            pixels = read_image(given["file_name"], self.image_format)
        else:
            pixels = given["image"].byte().cpu().numpy().transpose(1, 2, 0)
        height, width = pixels.shape[:2]
        windows = tile_windows(height, width, self.size, self.overlap)
        parts = [part for window in windows for part in self._parts(pixels, window)]
        parts = [part for part in parts if not _is_seen_better(part, windows, (height, width))]
        joined = sorted(join(parts), key=lambda part: -part.score)
        result = Instances((height, width))
        result.pred_boxes = Boxes(torch.from_numpy(np.array([part.box for part in joined], np.float32).reshape(-1, 4)))
        result.scores = torch.tensor([part.score for part in joined])
        result.pred_classes = torch.tensor([part.label for part in joined], dtype=torch.int64)
        if self.mask_output == "rle":
            result.pred_masks_rle = RLEs([_rle_of(part, height, width) for part in joined])
        else:
            result.pred_masks = torch.zeros(len(joined), height, width, dtype=torch.bool)
            for mask, part in zip(result.pred_masks.numpy(), joined, strict=True):
                mask[part.at] = part.mask
        return result

    def _parts(self, pixels: npt.NDArray[np.uint8], window: Window) -> list[Part]:
        tile = T.AugInput(np.ascontiguousarray(pixels[window]))
        self.resize(tile)
        image = torch.from_numpy(tile.image.astype("float32").transpose(2, 0, 1).copy())
        (top, bottom), (left, right) = ((side.start, side.stop) for side in window)
        given = {"image": image, "height": bottom - top, "width": right - left}
        found = self.model([given])[0]["instances"].to("cpu")
        inner = [left > 0, top > 0, right < pixels.shape[1], bottom < pixels.shape[0]]
        parts = []
        for i in range(len(found)):
            mask = coco_mask.decode(found.pred_masks_rle[i]).astype(bool)
            rows, columns = tight_window(mask)
            if rows.stop == 0:
                continue
            touched = [columns.start == 0, rows.start == 0, columns.stop == mask.shape[1], rows.stop == mask.shape[0]]
            parts.append(
                Part(
                    window,
                    found.scores[i].item(),
                    int(found.pred_classes[i]),
                    found.pred_boxes.tensor[i].numpy() + np.array([left, top, left, top], np.float32),
                    (slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)),
                    mask[rows, columns],
                    any(a and b for a, b in zip(touched, inner, strict=True)),
                )
            )
        return parts


def in_tiles(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model, or where ``TEST.TILES`` asks for it, the model in tiles."""
    return DetectorInTiles(cfg, model).eval() if cfg.TEST.TILES.SIZE else model


def _is_seen_better(part: Part, windows: Sequence[Window], image_size: tuple[int, int]) -> bool:
    """Whether another tile has all of a part, farther from the borders at which objects are cut.

    That tile's verdict counts, also where it finds nothing. Where both are about as far, what they find is joined.
    """
    margins = [_margin(part.at, window, image_size) for window in (part.window, *windows)]
    sides = [side.stop - side.start for side in part.at]
    return max(margins) - max(margins[0], 0) > NEARLY * max(sides)


def _margin(at: Window, window: Window, image_size: tuple[int, int]) -> float:
    """Pixels from a window to the borders of a tile behind which the image continues; negative where it is outside."""
    margins = [math.inf]
    for inner, outer, length in zip(at, window, image_size, strict=True):
        margins += [inner.start - outer.start] if outer.start > 0 or inner.start < outer.start else []
        margins += [outer.stop - inner.stop] if outer.stop < length or inner.stop > outer.stop else []
    return min(margins)


def join(parts: Sequence[Part]) -> list[Part]:
    """The objects that parts belong to.

    Two parts of different tiles are of one object if they have a class and agree on what both tiles see, or if one that
    is cut lies in the other. Of the parts of an object the best that is not cut stands for it; where all are cut, their
    union does.
    """
    group = list(range(len(parts)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    links = []
    for i, j in _candidates(parts):
        a, b = parts[i], parts[j]
        seen = _common(a.window, b.window)
        first, second = _inside(a, seen), _inside(b, seen)
        common = np.count_nonzero(first & second)
        sizes = np.count_nonzero(first), np.count_nonzero(second)
        iou = common / max(sum(sizes) - common, 1)
        swallowed = any(
            part.is_cut and size == np.count_nonzero(part.mask) and common > AGREEMENT * size
            for part, size in zip((a, b), sizes, strict=True)
        )
        if iou > AGREEMENT or swallowed:
            links.append((iou, i, j))
    taken = set[tuple[int, tuple[int, int]]]()
    for iou, i, j in sorted(links, reverse=True):
        a, b = parts[i], parts[j]
        keys = (i, b.tile), (j, a.tile)
        if iou > AGREEMENT and not taken.isdisjoint(keys):
            continue  # of neighbours that touch, the one that agrees best
        taken.update(keys if iou > AGREEMENT else ())
        group[root(i)] = root(j)
    objects = dict[int, list[Part]]()
    for i, part in enumerate(parts):
        objects.setdefault(root(i), []).append(part)
    return [_object(members) for members in objects.values()]


def _candidates(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Pairs of different tiles and one class whose windows overlap."""
    if not parts:
        return []
    at = np.array([[part.at[0].start, part.at[1].start, part.at[0].stop, part.at[1].stop] for part in parts])
    label = np.array([part.label for part in parts])
    tile = np.array([part.tile for part in parts])
    pairs = []
    for i in range(len(parts) - 1):
        rest = slice(i + 1, None)
        near = (at[rest, :2] < at[i, 2:]).all(axis=1) & (at[rest, 2:] > at[i, :2]).all(axis=1)
        other = (tile[rest] != tile[i]).any(axis=1) & (label[rest] == label[i])
        pairs += [(i, i + 1 + int(j)) for j in (near & other).nonzero()[0]]
    return pairs


def _common(a: Window, b: Window) -> Window:
    rows, columns = (slice(max(x.start, y.start), min(x.stop, y.stop)) for x, y in zip(a, b, strict=True))
    return rows, columns


def _inside(part: Part, window: Window) -> npt.NDArray[np.bool_]:
    """The mask of a part in a window."""
    size = [max(side.stop - side.start, 0) for side in window]
    inside = np.zeros(size, bool)
    shared = _common(part.at, window)
    if all(side.stop > side.start for side in shared):
        inside[_relative(shared, window)] = part.mask[_relative(shared, part.at)]
    return inside


def _relative(window: Window, to: Window) -> Window:
    rows, columns = (slice(x.start - y.start, x.stop - y.start) for x, y in zip(window, to, strict=True))
    return rows, columns


def _object(members: Sequence[Part]) -> Part:
    best = max(members, key=lambda part: (not part.is_cut, part.score))
    if not best.is_cut or len(members) == 1:
        return best
    sides = zip(*(part.at for part in members), strict=True)
    rows, columns = (slice(min(x.start for x in side), max(x.stop for x in side)) for side in sides)
    mask = np.any([_inside(part, (rows, columns)) for part in members], axis=0)
    boxes = np.array([part.box for part in members])
    box = np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))
    return Part(best.window, max(part.score for part in members), best.label, box, (rows, columns), mask, True)


def _rle_of(part: Part, height: int, width: int) -> dict[str, Any]:
    """The COCO encoding of a part in an image, without a mask of the image's size."""
    rows, columns = part.at
    strip = np.zeros((height, columns.stop - columns.start), np.uint8, order="F")  # RLEs run from column to column
    strip[rows] = part.mask
    counts = runs_of(coco_mask.encode(strip), *strip.shape).tolist()
    counts[0] += columns.start * height
    after = (width - columns.stop) * height
    if len(counts) % 2:  # the last run is of zeros
        counts[-1] += after
    elif after:
        counts.append(after)
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
