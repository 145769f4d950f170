"""The cases as a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bad_input import annotations, checkpoints, components, configs, disks, images
from tests.bad_input.case import Case
from tests.conftest import ROOT

PAGE = ROOT / "docs/bad-input.md"
GROUPS: dict[str, Sequence[Case]] = {
    "Annotations": annotations.CASES,
    "Images": images.CASES,
    "Components": components.CASES,
    "Checkpoints": checkpoints.CASES,
    "Configs": configs.CASES,
    "Disks": disks.CASES,
}
INTRODUCTION = """# Input that is wrong

What you get for files that are damaged, do not fit, or were made to do harm. Every row is a test in `tests/bad_input`,
which compares the words below with what is said, and looks that nothing was written. `python -m tests.bad_input` makes
this page.

Commands print a sentence and end with an exit status that is not 0; functions raise an error with the sentence. No file
of weights, components or annotations and no YAML config can run code, and what weights and components claim to hold is
compared with their length before room is made for it (`tests/test_untrusted_files.py`, `tests/test_absurd_claims.py`).

Two ways remain for files to run code. A config that ends in `.py` (a LazyConfig) is a Python program, and runs as one:
use those that you or people you trust have written. And Detectron2's own `cfg.merge_from_file(path)` runs what YAML
asks for: in scripts of your own, call `meinst_d2.config_file.merge_config_file(cfg, path)`, or add
`allow_unsafe=False`.
"""


def as_markdown() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    for title, cases in GROUPS.items():
        rows = [f"| {case.reader} | {_cell(case.wrong)} | {_result(case)} |" for case in cases]
        parts.append(
            "\n".join([f"## {title}\n", "| reader | what is wrong | what you get |", "|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def _result(case: Case) -> str:
    if case.error is None:
        return _cell(case.gets)
    return "<br>".join(f"`` {_cell(line)} ``" for line in case.gets.splitlines())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\t", "\\t")
