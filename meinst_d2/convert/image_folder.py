"""The images of a folder, found by what annotation files say of them, and the pixels of those that hold masks."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from tqdm import tqdm

from meinst_d2.data.coco import listed
from meinst_d2.data.image_files import UNREADABLE, read_header, reason_of

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
T = TypeVar("T")
U = TypeVar("U")


def in_threads(function: Callable[[T], U], items: Sequence[T]) -> Iterator[U]:
    """The function of every item, in order, with a progress bar; decoding images keeps several cores busy."""
    with ThreadPoolExecutor() as pool:
        results = pool.map(function, items)
        yield from tqdm(results, total=len(items), desc="images", unit=" images", dynamic_ncols=True)


def files_below(folder: Path, suffixes: Iterable[str] = SUFFIXES) -> list[Path]:
    """The files of a folder and of those below, sorted, without hidden ones."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and not path.name.startswith("."))
    return sorted(path for path in paths if path.is_file())


class ImageFolder:
    """The images below a folder; an annotation file cannot name any other.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no images.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = files_below(root)
        if not self.paths:
            what = "holds no images" if root.is_dir() else "does not exist"
            raise FileNotFoundError(f"the folder of images {root} {what}: name it with --images")
        self._by_place = {os.path.abspath(path): path for path in self.paths}
        self._by_name, self._by_stem = defaultdict[str, list[Path]](list), defaultdict[str, list[Path]](list)
        for path in self.paths:
            self._by_name[path.name].append(path)
            self._by_stem[path.relative_to(root).with_suffix("").as_posix()].append(path)

    def named(self, name: str, file: Path) -> Path:
        """The image that an annotation file names: from that file's folder, from this one, or by its own name alone.

        Raises:
            FileNotFoundError, ValueError: this folder does not hold it, or holds several.
        """
        plain = name.replace("\\", "/")
        base = PurePosixPath(plain).name
        for place in (file.parent / plain, self.root / base):
            if image := self._by_place.get(os.path.abspath(place)):
                return image
        return self._only(self._by_name.get(base, []), f"the image {name!r}", file)

    def matching(self, file: Path, folder: Path) -> Path:
        """The image with the same place and name, but for the suffix, as a file below another folder.

        Raises:
            FileNotFoundError, ValueError: this folder does not hold it, or holds several.
        """
        stem = file.relative_to(folder).with_suffix("").as_posix()
        return self._only(self._by_stem.get(stem, []), f"an image {stem}.*", file)

    def _only(self, found: list[Path], what: str, file: Path) -> Path:
        if len(found) > 1:
            raise ValueError(f"{file} is of {what}, and {self.root} holds {listed(found)}: keep one of them")
        if not found:
            raise FileNotFoundError(f"{file} is of {what}, which is not in {self.root}: name its folder with --images")
        return found[0]


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as Detectron2 reads it; raises an OSError if it cannot be read."""
    try:
        return read_header(os.fspath(path)).size
    except UNREADABLE as error:
        raise OSError(f"the image {path} cannot be read: {reason_of(error)}") from error


def pixels_of(
    path: Path | BinaryIO,
    size: tuple[int, int] | None = None,
    prepare: Callable[[Image.Image], Image.Image] = lambda image: image,
) -> npt.NDArray[Any]:
    """The values of an image file that holds masks.

    Args:
        path: of the file, which must have one page.
        size: (height, width) that it must have, where that is known.
        prepare: is given the image first.

    Raises:
        OSError: it cannot be read.
        ValueError: it has several pages or another size.
    """
    try:
        with Image.open(path) as image:
            pages = getattr(image, "n_frames", 1)
            pixels = np.asarray(prepare(image))
    except UNREADABLE as error:
        raise OSError(f"the image {path} cannot be read: {reason_of(error)}") from error
    if pages > 1:
        raise ValueError(f"{path} has {pages} pages: save each as a file of its own, and its image too")
    if size and pixels.shape[:2] != size:
        have, want = (" x ".join(map(str, sides)) for sides in (pixels.shape[:2], size))
        raise ValueError(f"{path} has {have} pixels (height x width), and its image {want}: both must have one size")
    return pixels
