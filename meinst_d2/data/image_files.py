"""Image files as Detectron2 reads them, and why they cannot be read."""

from __future__ import annotations

import struct

import detectron2.data.detection_utils as utils
import numpy as np
from PIL import Image, UnidentifiedImageError

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged, or no images at all."""


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read an image and turn it as its EXIF orientation says.

    Args:
        path: of the file.
        image_format: "RGB", "BGR" or another of ``INPUT.FORMAT``.

    Returns:
        (H, W, C) uint8.

    Raises:
        FileNotFoundError: no such file.
        OSError: it is no whole image, or so large that Pillow takes it for an attack.
    """
    try:
        return utils.read_image(path, format=image_format)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no image {path}") from error
    except UNREADABLE as error:
        raise OSError(f"the image {path} cannot be read: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Why a file cannot be read, without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
