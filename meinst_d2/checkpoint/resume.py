"""Which checkpoint a run goes on from: the last one that is whole."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meinst_d2.checkpoint.readers import load_tensor_file

TAG = "last_checkpoint"
NUMBERED = re.compile(r"model_(\d+)\.pth")


@dataclass(frozen=True)
class Resumable:
    """A checkpoint that training can go on from.

    Attributes:
        path: of the file.
        passed_over: what is wrong with each later one, a sentence each.
    """

    path: Path
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A checkpoint that has been read.

    Attributes:
        path: of the file.
        content: what it holds.
        passed_over: what is wrong with each later one, a sentence each.
    """

    path: Path
    content: dict[str, Any]
    passed_over: tuple[str, ...] = ()


def open_last_whole(folder: Path) -> OpenedCheckpoint | None:
    """Like :func:`last_whole_checkpoint`, with what it holds."""
    found = last_whole_checkpoint(folder)
    return found and OpenedCheckpoint(found.path, load_tensor_file(found.path), found.passed_over)


def last_whole_checkpoint(folder: Path) -> Resumable | None:
    """The checkpoint that ``last_checkpoint`` names or, where that is not whole, the latest before it that is.

    Every byte of the file is read, and compared with the checksums that it holds.

    Returns:
        None where there is no ``last_checkpoint``: nothing has been saved.

    Raises:
        ValueError: none of them is whole.
    """
    tag = folder / TAG
    if not tag.is_file():
        return None
    problems: list[str] = []
    for path in _latest_first(folder, tag.read_text().strip()):
        problem = _what_is_wrong(path)
        if problem is None:
            return Resumable(path, tuple(problems))
        problems.append(problem)
    raise ValueError(f"no checkpoint is whole: {'; '.join(problems)}: delete {tag} to start anew")


def _latest_first(folder: Path, tagged: str) -> Iterator[Path]:
    yield folder / tagged
    named = NUMBERED.fullmatch(tagged)
    before = int(named[1]) if named else None  # model_final comes after all that have numbers
    numbers = {int(found[1]): path for path in folder.iterdir() if (found := NUMBERED.fullmatch(path.name))}
    for number in sorted(numbers, reverse=True):
        if before is None or number < before:
            yield numbers[number]


def _what_is_wrong(path: Path) -> str | None:
    if not path.is_file():
        return f"{path} does not exist"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                return f"{path} is damaged in {damaged}"
        content = load_tensor_file(path)
    except (ValueError, zipfile.BadZipFile) as error:
        return str(error)
    return None if isinstance(content, dict) and "model" in content else f"{path} holds no model"
