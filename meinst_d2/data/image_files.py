"""Image files as Detectron2 reads them, in 8 bits, and why they cannot be read."""

from __future__ import annotations

import logging
import struct
from contextlib import suppress
from dataclasses import dataclass

import detectron2.data.detection_utils as utils
import numpy as np
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import ExifTags, Image, UnidentifiedImageError

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged, or no images at all."""
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Of Pillow, for grey images of more than 8 bits; of colours it gives the upper 8 bits of 16 itself."""


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an image and turn it as its EXIF orientation says.

    Of grey values of 16 bits the upper 8 are taken (65535 becomes 255), floats are clipped to 0 ... 255; of a file of
    several pages the first is read. A warning says either once.

    Args:
        path: of the file.
        image_format: "RGB", "BGR" or another of ``INPUT.FORMAT``.

    Returns:
        (H, W, C) uint8.

    Raises:
        FileNotFoundError: no such file.
        OSError: it is not a whole image, or so large that Pillow takes it for an attack.
    """
    try:
        with PathManager.open(path, "rb") as file:
            opened = Image.open(file)
            if (pages := _pages(opened)) > 1:
                _warn(f"{path} has {pages} pages, of which the first is read", "pages")
            image = utils._apply_exif_orientation(opened)
            if image.mode in DEEP_MODES:
                how = "floats are clipped to 0 ... 255" if image.mode == "F" else "the upper 8 of 16 are taken"
                _warn(f"{path} has more than 8 bits per pixel: {how}; convert such images to 8 bits yourself", "depth")
            if image.mode in DEEP_MODES and image.mode != "F":
                image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
            return utils.convert_PIL_to_numpy(image, image_format)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the image {path} does not exist") from error
    except UNREADABLE as error:
        raise OSError(f"the image {path} cannot be read: {reason_of(error)}") from error


def _warn(text: str, key: str) -> None:
    log_first_n(logging.WARNING, text, n=1, key=(key,))


def _pages(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format == "TIFF" else 1


@dataclass(frozen=True)
class Header:
    """What is known of an image file without its pixels."""

    size: tuple[int, int]  # (height, width) after turning
    deep: bool  # more than 8 bits per pixel and channel
    pages: int
    turned: bool  # by its EXIF orientation


def read_header(path: str) -> Header:
    """Open an image file and read no pixels; raises what Pillow raises."""
    with Image.open(path) as image:
        orientation = None
        if image.format != "PNG" or "exif" in image.info:  # asking a PNG without would decode the whole image
            with suppress(Exception):  # Detectron2 continues without it
                orientation = image.getexif().get(ExifTags.Base.Orientation)
        size = image.size if orientation in (5, 6, 7, 8) else image.size[::-1]  # those swap the sides
        return Header(size, image.mode in DEEP_MODES, _pages(image), orientation in range(2, 9))


def reason_of(error: BaseException) -> str:
    """Why a file cannot be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
