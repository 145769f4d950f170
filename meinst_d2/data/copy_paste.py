"""Copy-paste: objects of another image of the set, with their masks, on an image (Ghiasi et al., arXiv 2012.07177)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from meinst_d2.data.augmentation import AugmentedImage, bit_mask, bounds, from_bit_masks
from meinst_d2.data.mapper import MEInstDatasetMapper


class CopyPaste:
    """A mapper that puts objects of another record's image on some of the images."""

    def __init__(self, mapper: MEInstDatasetMapper, records: Sequence[Mapping[str, Any]], prob: float) -> None:
        """
        Args:
            mapper: of records to samples; both images go through its augmentations first.
            records: of the set, in Detectron2's dataset format.
            prob: share of the images that get objects of another one, each of its objects by the toss of a coin.

        Raises:
            ValueError: the mapper makes no masks, or ``prob`` is not between 0 and 1.
        """
        if mapper.mask_size is None:
            raise ValueError("INPUT.COPY_PASTE.PROB: copy-paste needs masks, and MODEL.MASK_ON is False")
        if not 0 <= prob <= 1:
            raise ValueError(f"INPUT.COPY_PASTE.PROB = {prob} must be between 0 and 1")
        self.mapper, self.records, self.prob = mapper, records, prob
        self.mask_size = mapper.mask_size

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A sample as the mapper makes it. Random choices follow from numpy's global generator."""
        given = self.mapper.augment(record)
        if np.random.rand() < self.prob:
            other = self.mapper.augment(self.records[np.random.randint(len(self.records))])
            chosen = np.flatnonzero(np.random.rand(len(other.classes)) < 0.5).tolist()
            (height, width), (most_rows, most_columns) = other.image.shape[:2], given.image.shape[:2]
            given = paste(given, other, chosen, _offset(width, most_columns), _offset(height, most_rows))
        return self.mapper.finish(record, given)


def _offset(length: int, available: int) -> int:
    """Where something starts that lies within, or covers, what is available; drawn at random."""
    room = available - length
    return int(np.random.randint(min(room, 0), max(room, 0) + 1))


def paste(below: AugmentedImage, above: AugmentedImage, chosen: Sequence[int], x: int, y: int) -> AugmentedImage:
    """``below`` with ``chosen`` instances of ``above`` on it.

    What these hide is taken from the masks of ``below`` and from their boxes. Instances that are hidden whole are left
    out, those of which nothing is hidden stay exactly as they are.

    Args:
        below, above: of any sizes.
        chosen: rows of ``above``.
        x, y: of the top left corner of ``above`` in ``below``; what lies outside is cut off.
    """
    size = below.image.shape[:2]
    segmentations = [above.segmentations[i] for i in chosen]
    masks = [_placed(bit_mask(segmentation, above.image.shape[:2]), x, y, size) for segmentation in segmentations]
    hidden = np.any([np.zeros(size, bool), *masks], axis=0)
    image = np.where(hidden[..., None], _placed(above.image, x, y, size), below.image)
    pasted = from_bit_masks(image, [above.classes[i] for i in chosen], masks)
    classes, boxes, segmentations = list[int](), list[npt.NDArray[Any]](), list[Any]()
    for label, box, segmentation in zip(below.classes, below.boxes, below.segmentations, strict=True):
        mask = bit_mask(segmentation, size)
        if (mask & hidden).any():
            segmentation = mask & ~hidden
            box = bounds(segmentation)
            if not segmentation.any():
                continue
        classes.append(label)
        boxes.append(box)
        segmentations.append(segmentation)
    return AugmentedImage(
        image,
        classes + pasted.classes,
        np.array([*boxes, *pasted.boxes], np.float32).reshape(-1, 4),
        segmentations + pasted.segmentations,
    )


def _placed(pixels: npt.NDArray[Any], x: int, y: int, size: tuple[int, int]) -> npt.NDArray[Any]:
    """(h, w, ...) pixels with their top left corner at (x, y) of ``size`` (H, W) zeros."""
    placed = np.zeros((*size, *pixels.shape[2:]), pixels.dtype)
    (top, bottom), (left, right) = (
        (max(start, 0), max(min(start + length, most), 0))
        for start, length, most in zip((y, x), pixels.shape, size, strict=False)
    )
    placed[top:bottom, left:right] = pixels[top - y : max(bottom - y, 0), left - x : max(right - x, 0)]
    return placed
