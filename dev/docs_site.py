"""MkDocs hooks: pages of the site that are made from files outside docs/."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "dev"))  # mkdocs loads hooks by path

from config_reference import SOURCE, as_markdown, read_groups  # noqa: E402

COPIES = {"README.md": "index.md", "MODEL_ZOO.md": "model-zoo.md"}
ROOMS = sorted({path.parent.name for path in (ROOT / "meinst_d2").glob("*/__init__.py")} - {"commands"})
"""Whose modules have a page of reference."""
LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add README, model zoo, config reference and the reference of every room."""
    for source, target in COPIES.items():
        files.append(File.generated(config, target, content=for_site((ROOT / source).read_text(), Path())))
    files.append(
        File.generated(config, "config-reference.md", content=as_markdown(list(read_groups(SOURCE.read_text()))))
    )
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=reference(room)))
    return files


def reference(room: str) -> str:
    """What the room says about itself, then every module in it."""
    folder = ROOT / "meinst_d2" / room
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    return f"# {room}\n\n{about}\n\n" + "\n".join(f"::: meinst_d2.{room}.{module}" for module in modules) + "\n"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/, which a checkout follows, are text on the site."""
    if page.file.generated_by:
        return markdown
    return for_site(markdown, Path("docs") / Path(page.file.src_uri).parent)


def for_site(markdown: str, folder: Path) -> str:
    """Point links of a file in ``folder`` at pages of the site, and take away those to files that are not pages."""

    def replace(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if "://" in target:
            return match[0]
        path = (ROOT / folder / target).resolve().relative_to(ROOT).as_posix()
        page = COPIES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if page is None:
            return match["text"]
        up = "../" * (len(folder.parts) - 1) if folder.parts[:1] == ("docs",) else ""
        return f"[{match['text']}]({up}{page}{anchor})"

    markdown = LINK.sub(replace, markdown)
    return markdown if folder.parts else markdown.replace("](docs/images/", "](images/")
