"""Readers of masks that are images: a file per object, label images, and Pascal VOC's pairs of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pycocotools.mask as mask_util
from PIL import Image

from meinst_d2.convert import AnnotatedImage, Annotations, Source
from meinst_d2.convert.image_folder import ImageFolder, files_below, in_threads, pixels_of, size_of
from meinst_d2.masks.rasterize import RLE

OBJECT = "object"
"""The class of objects that have none."""
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_COLORS = [
    tuple(sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(3)) for channel in range(3))
    for index in range(256)
]
"""Of VOC's palette: every third bit of the index belongs to one channel, the lowest being its highest."""
VOID = VOC_COLORS[255]
NOT_CLASSES = ("background", "ignored", "void")
"""What label maps list besides classes."""


def label_rles(labels: npt.NDArray[Any]) -> dict[Any, RLE]:
    """By rising value, the masks of every value but 0 in an (H, W) label image, or that of a boolean one."""
    values = [value for value in np.unique(labels).tolist() if value]
    return {value: mask_util.encode(np.asfortranarray(labels == value, np.uint8)) for value in values}


def read_masks(source: Source) -> Annotations:
    """``NAME/images/NAME.png`` and one image per object in ``NAME/masks``; every value but 0 belongs to the object."""
    folders = [path for path in sorted(source.path.glob("*")) if (path / "images").is_dir()]
    if not folders:
        raise FileNotFoundError(f"{source.path} holds no NAME/images/NAME.png: name the folder of these folders")

    def read(folder: Path) -> AnnotatedImage:
        paths = files_below(folder / "images")
        if len(paths) != 1:
            raise ValueError(f"{folder / 'images'} holds {len(paths)} images: keep the one that the masks are of")
        size = size_of(paths[0])
        masks = (pixels_of(path, size, _in_one_channel) != 0 for path in files_below(folder / "masks"))
        objects = [(source.class_name or OBJECT, [*label_rles(mask).values()]) for mask in masks]
        return AnnotatedImage(paths[0], size, objects)

    return Annotations(source.path, in_threads(read, folders))


def _in_one_channel(image: Image.Image) -> Image.Image:
    return image.convert("L") if len(image.getbands()) > 1 else image


def read_labels(source: Source) -> Annotations:
    """Label images below a folder, in which every value but 0 is an object, and images of the same names."""
    if source.images is None:
        raise ValueError("labels needs --images DIR: the folder of the images that the label images are of")
    folder, paths = ImageFolder(source.images), files_below(source.path)
    if not paths:
        raise FileNotFoundError(f"{source.path} holds no label images (PNG or TIFF): name their folder")

    def read(path: Path) -> AnnotatedImage:
        image = folder.matching(path, source.path)
        size = size_of(image)
        pixels = pixels_of(path, size)
        if pixels.ndim > 2 or (pixels.dtype.kind == "f" and not (pixels == np.floor(pixels)).all()):
            kind = f"{pixels.shape[2]} channels" if pixels.ndim > 2 else "values that are not whole numbers"
            raise ValueError(f"{path} has {kind}: save label images with one whole number per pixel")
        return AnnotatedImage(image, size, [(source.class_name or OBJECT, [x]) for x in label_rles(pixels).values()])

    return Annotations(folder.root, in_threads(read, paths), num_files=len(folder.paths))


def read_voc(source: Source) -> Annotations:
    """Pascal VOC's ``SegmentationObject`` and ``SegmentationClass``, with VOC's classes or those of ``labelmap.txt``.

    Pixels stand for the colors of their palette, or for those of VOC's where there is no ``labelmap.txt``.
    """
    label_map = source.path / "labelmap.txt"
    own = label_map.is_file()
    voc = dict(zip(_number(VOC_COLORS[1:]).tolist(), VOC_CLASSES, strict=False))
    names = _read_label_map(label_map) if own else voc
    folder = ImageFolder(source.images or source.path / "JPEGImages")
    object_folder, class_folder = source.path / "SegmentationObject", source.path / "SegmentationClass"
    paths = files_below(object_folder, [".png"])
    if not paths:
        raise FileNotFoundError(f"{object_folder} holds no PNG: name the folder that it lies in")

    def as_rgb(image: Image.Image) -> Image.Image:
        if image.mode == "L" or (image.mode == "P" and not own):
            image.putpalette([value for color in VOC_COLORS for value in color])
        return image.convert("RGB")

    def read(path: Path) -> AnnotatedImage:
        image, class_path = folder.matching(path, object_folder), class_folder / path.relative_to(object_folder)
        size = size_of(image)
        objects, classes = (_number(pixels_of(file, size, as_rgb)) for file in (path, class_path))
        objects[objects == _number(VOID)] = 0
        found = []
        for color, rle in label_rles(objects).items():
            values, counts = np.unique(classes[objects == color], return_counts=True)
            most = int(values[counts.argmax()])
            if most not in names:
                rgb, table = (most >> 16, most >> 8 & 255, most & 255), label_map if own else "VOC's palette"
                raise ValueError(f"{class_path} has an object of the color {rgb}, no class of {table}: add it there")
            found.append((names[most], [rle]))
        return AnnotatedImage(image, size, found)

    class_names = list(dict.fromkeys(names.values()))
    return Annotations(folder.root, in_threads(read, paths), class_names, len(folder.paths))


def _number(color: Any) -> Any:
    """A color, or an (..., 3) array of colors, as one number."""
    return np.asarray(color, np.int64) @ (1 << 16, 1 << 8, 1)


def _read_label_map(path: Path) -> dict[int, str]:
    """The classes by color; a line is ``name:red,green,blue:parts:actions``."""
    names = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        name, _, rest = line.strip().partition(":")
        if not name or name.startswith("#") or name in NOT_CLASSES:
            continue
        color = rest.partition(":")[0].split(",")
        if len(color) != 3 or not all(value.strip().isdecimal() and int(value) < 256 for value in color):
            raise ValueError(f"line {number} of {path} is {line!r}: write name:red,green,blue::")
        names[int(_number([int(value) for value in color]))] = name
    return names
