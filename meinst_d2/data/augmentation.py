"""What training does to images before the network sees them, as ``INPUT`` asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import detectron2.data.detection_utils as utils
import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures.masks import polygons_to_bitmask

from meinst_d2.masks.rle import tight_window


class AugmentedImage(NamedTuple):
    """An image of (H, W) pixels and M instances in it."""

    image: npt.NDArray[np.uint8]  # (H, W, 3)
    classes: list[int]  # M
    boxes: npt.NDArray[np.float32]  # (M, 4) xyxy
    segmentations: list[Any]  # M, each a list of polygons (x0, y0, x1, y1, ...) or a bit mask (H, W)


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Detectron2's augmentations of ``INPUT``, in the order in which they are applied.

    Crops come first, then the size (``SCALE_JITTER`` in place of Detectron2's sizes), flips and colours.

    Raises:
        ValueError: a value is out of range.
    """
    given = cfg.INPUT
    augmentations = utils.build_augmentation(cfg, is_train=True)
    if given.SCALE_JITTER.ENABLED:
        (low, high), (height, width) = given.SCALE_JITTER.RANGE, given.SCALE_JITTER.SIZE
        if not 0 < low <= high or min(height, width) < 1:
            wrong = f"INPUT.SCALE_JITTER.RANGE = {(low, high)} of SIZE {(height, width)}"
            raise ValueError(f"{wrong} is not a range: give two factors, the smaller one first, of a size in pixels")
        augmentations[:1] = [T.ResizeScale(low, high, height, width), T.FixedSizeCrop((height, width), pad=False)]
    if given.CROP.ENABLED:
        augmentations.insert(0, T.RandomCrop(given.CROP.TYPE, given.CROP.SIZE))
    jitter = given.COLOR_JITTER
    for name, kind, amount in (
        ("BRIGHTNESS", T.RandomBrightness, jitter.BRIGHTNESS),
        ("CONTRAST", T.RandomContrast, jitter.CONTRAST),
        ("SATURATION", T.RandomSaturation, jitter.SATURATION),
    ):
        if not 0 <= amount <= 1:
            raise ValueError(f"INPUT.COLOR_JITTER.{name} = {amount} must be between 0 and 1")
        if amount:
            augmentations.append(kind(1 - amount, 1 + amount))
    return augmentations


class AlbumentationsPipeline:
    """A pipeline of the library albumentations, applied to an image and to the masks of its instances."""

    def __init__(self, path: str, image_format: str = "BGR") -> None:
        """
        Args:
            path: what ``albumentations.save(pipeline, path, data_format="yaml")`` wrote.
            image_format: as in ``INPUT.FORMAT``; the pipeline sees RGB.

        Raises:
            ValueError: the library is missing, the file cannot be read or is not a pipeline, or it asks for boxes.
        """
        key = f"INPUT.ALBUMENTATIONS = {path!r}"
        try:
            import albumentations
        except ImportError as error:
            raise ValueError(f"{key} needs albumentations: pip install 'meinst_d2[albumentations]'") from error
        try:
            pipeline = albumentations.load(path, data_format="json" if path.endswith(".json") else "yaml")
        except OSError as error:
            raise ValueError(f"{key} cannot be read: {error}") from error
        except Exception as error:  # whatever a file may hold
            wanted = 'what albumentations.save(pipeline, path, data_format="yaml") writes'
            raise ValueError(f"{key} is not {wanted} ({type(error).__name__}: {error})") from error
        if not isinstance(pipeline, albumentations.Compose):
            raise ValueError(f"{key} is a {type(pipeline).__name__}, not an albumentations.Compose: wrap it in one")
        if pipeline.processors:
            raise ValueError(f"{key} has bbox_params or keypoint_params: leave them out, boxes follow from the masks")
        self.pipeline, self.reverse = pipeline, image_format == "BGR"
        self.moves = any(not isinstance(step, albumentations.ImageOnlyTransform) for step in _steps(pipeline))

    def __call__(self, given: AugmentedImage) -> AugmentedImage:
        """What the pipeline makes of an image; its random choices follow from numpy's global generator.

        Where it moves pixels, masks become bit masks, boxes are theirs, and instances of which nothing is left are
        dropped.
        """
        self.pipeline.set_random_seed(int(np.random.randint(2**31)))
        channels = slice(None, None, -1 if self.reverse else 1)
        size = given.image.shape[:2]
        moved = given.segmentations if self.moves else []
        masks = [bit_mask(segmentation, size).view(np.uint8) for segmentation in moved]
        inputs = {"image": np.ascontiguousarray(given.image[:, :, channels]), **({"masks": masks} if masks else {})}
        result = self.pipeline(**inputs)
        image = np.ascontiguousarray(result["image"][:, :, channels])
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"INPUT.ALBUMENTATIONS made an image {image.shape} of {image.dtype}: leave pixels uint8")
        if not self.moves:
            return given._replace(image=image)
        return from_bit_masks(image, given.classes, [mask > 0 for mask in result.get("masks", ())])


def _steps(pipeline: Any) -> Iterator[Any]:
    """The transforms of a pipeline, and of what it is composed of."""
    for step in pipeline.transforms:
        yield from _steps(step) if hasattr(step, "transforms") else (step,)


def bit_mask(segmentation: Any, image_size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """(H, W), of polygons as COCO's tools draw them, or of a bit mask."""
    if isinstance(segmentation, list):
        return polygons_to_bitmask(segmentation, *image_size)
    return np.asarray(segmentation, np.bool_)


def from_bit_masks(image: npt.NDArray[np.uint8], classes: Sequence[int], masks: Sequence[Any]) -> AugmentedImage:
    """An image whose boxes are those of its masks, each (H, W); those without a pixel are left out."""
    kept = [i for i, mask in enumerate(masks) if mask.any()]
    boxes = np.array([bounds(masks[i]) for i in kept], np.float32).reshape(-1, 4)
    return AugmentedImage(image, [classes[i] for i in kept], boxes, [masks[i] for i in kept])


def bounds(segmentation: Any) -> npt.NDArray[np.float64]:
    """(4,) ``xyxy``, the tight box of polygons or of a bit mask; zeros where nothing is left."""
    if isinstance(segmentation, list):
        if not segmentation:
            return np.zeros(4)
        points = np.concatenate(segmentation).reshape(-1, 2)
        return np.concatenate((points.min(axis=0), points.max(axis=0)))
    rows, columns = tight_window(segmentation)
    return np.array([columns.start, rows.start, columns.stop, rows.stop], np.float64)
