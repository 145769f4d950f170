#!/usr/bin/env python
"""Print the reference of every config key as Markdown, from the comments in meinst_d2/config.py."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "meinst_d2/config.py"
PREFIXES = {
    "meinst": "MODEL.MEINST",
    "refine": "MODEL.MEINST.REFINE",
    "timm": "MODEL.TIMM",
    "tiles": "TEST.TILES",
    "cfg": "",
}
"""What the variables that keys are assigned to stand for."""
TITLES = {
    "_add_computing": "Computation",
    "_add_head": "Head",
    "_add_detection": "Detection",
    "_add_masks": "Masks",
    "_add_refinement": "Refined masks",
    "_add_timm": "Backbones of timm",
    "_add_augmentation": "Augmentation",
    "_add_tiles": "Large images",
    "add_meinst_config": "Training and evaluation",
}
HEADER = """# Config reference

The keys that `meinst_d2.add_meinst_config` adds to Detectron2's, with their defaults. Others keep Detectron2's meaning:
`MODEL.MASK_ON False` gives plain FCOS, `TEST.DETECTIONS_PER_IMAGE` caps the detections,
`DATALOADER.FILTER_EMPTY_ANNOTATIONS` says whether images without objects are trained on, `VIS_PERIOD` draws a training
sample for TensorBoard.
"""


@dataclass(frozen=True)
class Group:
    """Keys that share a comment.

    Attributes:
        function: that adds them.
        keys: full names and defaults, as written.
        meaning: the comment.
    """

    function: str
    keys: tuple[tuple[str, str], ...]
    meaning: str


def read_groups(source: str) -> Iterator[Group]:
    """Every group of keys, in the order of the source."""
    lines = source.splitlines()
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        keys: list[tuple[str, str]] = []
        meaning, last_line = "", -1
        for statement in function.body:
            name = _key(statement)
            if name is None:
                continue
            comment = _comment_above(lines, statement.lineno - 1)
            if (comment or statement.lineno > last_line + 1) and keys:
                yield Group(function.name, tuple(keys), meaning)
                keys = []
            meaning = comment or meaning
            keys.append((name, ast.unparse(statement.value)))  # type: ignore[attr-defined]
            last_line = statement.end_lineno or statement.lineno
        if keys:
            yield Group(function.name, tuple(keys), meaning)


def _key(statement: ast.stmt) -> str | None:
    """The name of the key that a statement gives a default."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    root, _, rest = ast.unparse(statement.targets[0]).partition(".")
    if root not in PREFIXES or not rest.isupper():
        return None
    return ".".join(filter(None, (PREFIXES[root], rest)))


def _comment_above(lines: list[str], line: int) -> str:
    found: list[str] = []
    while line > 0 and lines[line - 1].strip().startswith("#"):
        line -= 1
        found.insert(0, lines[line].strip().removeprefix("#").strip())
    return " ".join(found)


def as_markdown(groups: list[Group]) -> str:
    """A section per function, a row per key."""
    parts = [HEADER]
    for function, title in TITLES.items():
        parts.append(f"\n## {title}\n\n| key | default | meaning |\n|---|---|---|\n")
        for group in groups:
            if group.function == function:
                meaning = group.meaning.replace("|", "\\|")
                for number, (key, default) in enumerate(group.keys):
                    parts.append(f"| `{key}` | `{default}` | {meaning if number == 0 else 'as above'} |\n")
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: dev/config_reference.py > keys.md")
    parser.parse_args()
    print(as_markdown(list(read_groups(SOURCE.read_text()))), end="")


if __name__ == "__main__":
    main()
