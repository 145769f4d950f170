"""Which checkpoint a run resumes from: the last one that is whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from meinst_d2.checkpoint.readers import read_checkpoint

TAG = "last_checkpoint"
NUMBERED = re.compile(r"model_(\d+)\.pth")


class OpenedCheckpoint(NamedTuple):
    """A checkpoint that has been read.

    Attributes:
        path: of the file.
        content: what :func:`~meinst_d2.checkpoint.readers.read_checkpoint` gave.
        passed_over: what is wrong with each later one, a sentence each.
    """

    path: Path
    content: dict[str, Any]
    passed_over: tuple[str, ...] = ()


def open_last_whole(folder: Path) -> OpenedCheckpoint | None:
    """Read the checkpoint that ``last_checkpoint`` names or, where that is not whole, the latest before it that is.

    Every byte of the file is compared with the checksums that it holds.

    Returns:
        None where there is no ``last_checkpoint``: nothing has been saved.

    Raises:
        ValueError: none of them is whole.
    """
    tag = folder / TAG
    if not tag.is_file():
        return None
    tagged = folder / tag.read_text().strip()
    named = NUMBERED.fullmatch(tagged.name)  # model_final comes after all that have numbers
    numbers = {int(found[1]): path for path in folder.iterdir() if (found := NUMBERED.fullmatch(path.name))}
    earlier = [number for number in sorted(numbers, reverse=True) if named is None or number < int(named[1])]
    problems: list[str] = []
    for path in (tagged, *(numbers[number] for number in earlier)):
        try:
            return OpenedCheckpoint(path, read_checkpoint(path), tuple(problems))
        except FileNotFoundError:
            problems.append(f"{path} does not exist")
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(f"no checkpoint is whole: {'; '.join(problems)}: delete {tag} to start from the beginning")
