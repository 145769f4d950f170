"""Fetching weights from a URL, checked against the hash in their name."""

from __future__ import annotations

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

from meinst_d2 import require_detectron2

require_detectron2()

from detectron2.utils.file_io import PathManager  # noqa: E402

HASH_LENGTH = 8
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
"""The beginning of the file's sha256, as torch.hub has it: name-0123abcd.pth."""


def fetch(url: str) -> str:
    """Download a file into Detectron2's cache, unless it is there already.

    Args:
        url: http://, https://, detectron2:// and whatever else Detectron2's PathManager knows.

    Returns:
        Its local path.

    Raises:
        OSError: it could not be downloaded; nothing is left behind.
        ValueError: its sha256 does not begin as its name says; it is deleted.
    """
    try:
        path = PathManager.get_local_path(url)
    except (OSError, HTTPException, ValueError) as error:
        raise OSError(f"{url} could not be downloaded: {error}") from error
    try:
        require_hash(path, os.path.basename(urlparse(url).path))
    except ValueError as error:
        Path(path).unlink(missing_ok=True)
        raise ValueError(f"{error}; the download was deleted, try again") from error
    return path


def require_hash(path: str | os.PathLike[str], name: str | None = None) -> None:
    """Raise a ValueError if a file's name holds the beginning of a sha256, and not of its own.

    Args:
        path: the file.
        name: what it is called, where that is not the path's last part.
    """
    found = HASH_IN_NAME.search(name or os.path.basename(path))
    if found is None:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(found[1]):
        raise ValueError(
            f"{name or path} should have a sha256 that begins with {found[1]}, but it begins with "
            f"{digest.hexdigest()[:HASH_LENGTH]}: the file is damaged or another one"
        )
