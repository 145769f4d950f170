"""The page of the documentation: its tables are the cases, in order, with what a user gets."""

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
CASES = {(title, case.reader, case.wrong): case for title, cases in GROUPS.items() for case in cases}


def read_page() -> dict[tuple[str, str, str], str]:
    """The cell that says what a user gets, by group, reader and what is wrong."""
    found, title = {}, ""
    for line in PAGE.read_text().splitlines():
        title = line.removeprefix("## ") if line.startswith("## ") else title
        if line.startswith("| ") and not line.startswith("| reader |"):
            reader, wrong, gets = line.removeprefix("| ").removesuffix(" |").split(" | ", 2)
            found[title, reader, wrong.replace("\\|", "|")] = gets
    return found


def as_markdown(gets: dict[tuple[str, str, str], str]) -> str:
    """The whole page with these cells below the introduction that it has."""
    parts = [PAGE.read_text().partition("\n## ")[0]]
    for title, cases in GROUPS.items():
        rows = [f"| {case.reader} | {escaped(case.wrong)} | {gets[title, case.reader, case.wrong]} |" for case in cases]
        parts.append(
            "\n".join([f"## {title}\n", "| reader | what is wrong | what you get |", "|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def cell_of(case: Case, said: str) -> str:
    """Of a case's row; ``said`` is every sentence that the user gets."""
    return "<br>".join(f"`` {escaped(line)} ``" for line in said.splitlines()) if case.error else escaped(case.instead)


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\t", "\\t")
