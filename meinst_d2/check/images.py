"""The image files of a dataset: there, readable, of the size that the annotations are for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from detectron2.data.detection_utils import _apply_exif_orientation, read_image
from PIL import Image

from meinst_d2.check import image_problems as ip
from meinst_d2.check.problem import bits
from meinst_d2.check.scan import CocoFile
from meinst_d2.data.parallel import run_shards

CHUNK = 32
TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
ORIENTATION = 0x0112
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def check_images(file: CocoFile, folder: str | os.PathLike[str], *, decode: bool = False, workers: int = 1) -> None:
    """Flag images that are missing, cannot be read, or have another size.

    Args:
        file: scanned; its image flags change.
        folder: that file names are relative to.
        decode: read every pixel, as training does, instead of the headers alone: finds files that are cut off.
        workers: processes.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"there is no folder of images {folder}: name the folder that holds them")
    rows = range(len(file.image_flags))
    parts = run_shards(_check_shard, rows, workers, "images", file, Path(folder), decode, chunk=CHUNK, unit=" images")
    for part in parts:
        for start, flags in part:
            file.image_flags[start : start + len(flags)] |= flags


def _check_shard(
    chunks: Iterator[range], file: CocoFile, folder: Path, decode: bool
) -> list[tuple[int, npt.NDArray[np.uint32]]]:
    nameless = bits(ip.IMAGE_NO_OBJECT, ip.IMAGE_KEYS)
    found = []
    for rows in chunks:
        flags = np.zeros(len(rows), np.uint32)
        for i, row in enumerate(rows):
            if not file.image_flags[row] & np.uint32(nameless):
                height, width = file.sizes[row].tolist()
                flags[i] = image_flags(os.path.join(folder, file.names[row]), (height, width), decode)
        found.append((rows.start, flags))
    return found


def image_flags(path: str, size: tuple[int, int], decode: bool) -> int:
    """The problems of one image file.

    Args:
        path: of the file.
        size: (height, width) that it should have; zeros are not compared.
        decode: read every pixel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sizes and EXIF, which Detectron2 reads all the same
            (height, width), flags = _decode(path) if decode else _read_header(path)
    except FileNotFoundError:
        return ip.MISSING.bit
    except Exception:  # Pillow's plugins raise what they like
        return ip.UNREADABLE.bit
    if min(size) > 0 and size != (height, width):
        flags |= ip.OTHER_SIZE.bit
    return flags


def _decode(path: str) -> tuple[tuple[int, int], int]:
    _, flags = _read_header(path)
    pixels = read_image(path, "BGR")
    return (pixels.shape[0], pixels.shape[1]), flags


def _read_header(path: str) -> tuple[tuple[int, int], int]:
    """Height and width as Detectron2 will see them."""
    with Image.open(path) as image:
        width, height = image.size
        flags = ip.DEEP.bit if image.mode in DEEP_MODES else 0
        orientation = _orientation(image)
    if orientation in range(2, 9):
        flags |= ip.ROTATED.bit
    return ((width, height) if orientation in TURNED else (height, width)), flags


def _orientation(image: Image.Image) -> int | None:
    if image.format == "PNG" and "exif" not in image.info:
        return None  # asking would decode the whole image
    try:
        return image.getexif().get(ORIENTATION)
    except Exception:  # Detectron2 goes on without
        return None


def open_image(path: str) -> Image.Image:
    """The image as Detectron2 turns it, in RGB.

    Raises:
        OSError: it cannot be read.
    """
    with Image.open(path) as image:
        return _apply_exif_orientation(image).convert("RGB")
