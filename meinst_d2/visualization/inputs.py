"""What to look at, and where its picture goes."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"})
VIDEO_OUTPUT_SUFFIX = ".mp4"
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""What pictures are written as; others become .png."""


@dataclass(frozen=True)
class Source:
    """A file to look at.

    Attributes:
        path: as it was found.
        is_video: or else an image.
    """

    path: Path
    is_video: bool


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The images and videos that arguments of a command name, each once.

    Args:
        inputs: files, folders (their images and videos, by name, without folders below) and globs (``**`` goes down).

    Raises:
        FileNotFoundError: an argument names nothing.
    """
    found: dict[str, Path] = {}
    for text in inputs:
        for path in _expand(text):
            found.setdefault(os.path.realpath(path), path)
    return [Source(path, path.suffix.lower() in VIDEO_SUFFIXES) for path in found.values()]


def _expand(text: str) -> list[Path]:
    path = Path(text).expanduser()
    if path.is_dir():
        readable = _readable_suffixes()
        files = sorted((x for x in path.iterdir() if x.is_file() and x.suffix.lower() in readable), key=_natural)
        if not files:
            raise FileNotFoundError(f"the folder {text} holds no images or videos: name another, or a glob")
        return files
    if path.exists():
        return [path]
    files = sorted((Path(x) for x in glob.glob(str(path), recursive=True) if os.path.isfile(x)), key=_natural)
    if not files:
        raise FileNotFoundError(f"there is no file, folder or match for {text}: give --input FILE, FOLDER or 'GLOB'")
    return files


def _readable_suffixes() -> frozenset[str]:
    Image.init()
    return frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN) | VIDEO_SUFFIXES


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def plan_outputs(sources: Sequence[Source], output: Path) -> list[Path]:
    """The file that every source is drawn to; no two are the same, and none is a source.

    Args:
        sources: what will be drawn.
        output: a folder, or for a single source a file with the suffix of a picture or, for a video, .mp4.

    Raises:
        ValueError: a drawing would replace a source, or several would have to go to one file.
    """
    names_a_file = output.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES and not output.is_dir()
    if names_a_file and len(sources) > 1:
        raise ValueError(f"--output {output} is one file for {len(sources)} inputs: name a folder")
    if names_a_file and sources:
        if sources[0].is_video and output.suffix.lower() != VIDEO_OUTPUT_SUFFIX:
            raise ValueError(f"--output {output}: videos are written as {VIDEO_OUTPUT_SUFFIX}")
        if not sources[0].is_video and output.suffix.lower() not in PICTURE_SUFFIXES:
            raise ValueError(f"--output {output}: {sources[0].path} is an image, name a picture or a folder")
        targets = [output]
    else:
        targets = _in_folder(sources, output)
    originals = {os.path.realpath(source.path) for source in sources}
    for target in targets:
        if os.path.realpath(target) in originals:
            raise ValueError(f"--output {output} would replace the input {target}: name another folder")
    return targets


def require_own_file(path: Path, sources: Sequence[Source], pictures: Sequence[Path], model: Sequence[str]) -> None:
    """Raise a ValueError if a result file would replace something that the command reads or draws.

    Args:
        path: where results will be written.
        sources: what is looked at.
        pictures: what is drawn.
        model: files of the model; URLs do not matter.
    """
    if path.is_dir():
        raise ValueError(f"--save-json {path} is a folder: name a file in it")
    kinds: list[tuple[str, Sequence[Path | str]]] = [
        ("the input", [source.path for source in sources]),
        ("the picture", pictures),
        ("the model", model),
    ]
    for what, others in kinds:
        if os.path.realpath(path) in {os.path.realpath(other) for other in others}:
            raise ValueError(f"--save-json {path} would replace {what}: name another file")


def _in_folder(sources: Sequence[Source], folder: Path) -> list[Path]:
    taken: set[str] = set()
    targets = []
    for source in sources:
        suffix = source.path.suffix
        if source.is_video:
            suffix = VIDEO_OUTPUT_SUFFIX
        elif suffix.lower() not in PICTURE_SUFFIXES:
            suffix = ".png"
        name, number = source.path.stem + suffix, 1
        while name.lower() in taken:  # some file systems do not tell A.jpg from a.jpg
            number += 1
            name = f"{source.path.stem}-{number}{suffix}"
        taken.add(name.lower())
        targets.append(folder / name)
    return targets
