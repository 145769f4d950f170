"""What documents name exists, the site builds without a warning, and the tutorial runs."""

import ast
import contextlib
import functools
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from config_reference import SOURCE, as_markdown, read_groups
from detectron2.config import get_cfg

from meinst_d2 import add_meinst_config
from meinst_d2.commands import COMMANDS, main
from tests.conftest import ROOT
from tests.models import flat

DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("output", "site") for part in path.relative_to(ROOT).parts)
)
GENERATED = {ROOT / "docs/config-reference.md", ROOT / "docs/index.md", ROOT / "docs/model-zoo.md"}
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"```(?:bash|python)\n(.*?)```", re.DOTALL)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(path.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists() or found in GENERATED, f"{name_of(path)} links to {target}"
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{name_of(path)} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_scripts_and_configs_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    folders, suffixes = "tools|fuzz|configs|tests|docs|deploy|dev|meinst_d2", "py|yaml|sh|md|png|ipynb"
    named = set(re.findall(rf"(?<![\w/.-])((?:{folders})/[\w/.-]+\.(?:{suffixes}))", text))
    named |= set(re.findall(r"(?:^|python |`)((?:train_net|fit_pca|demo)\.py)", text))
    missing = {name for name in named if not (ROOT / name).is_file() and not Path(name).stem.isupper()}  # ROW.yaml
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_keys_that_are_named_exist(path: Path) -> None:
    cfg = get_cfg()
    add_meinst_config(cfg)
    keys = set(flat(cfg)) | {"MODEL.FCOS.TOP_LEVELS", "MODEL.MEInst"}  # of the published implementation
    named = re.findall(r"\b(?:MODEL|SOLVER|TEST|INPUT|DATALOADER|DATASETS)(?:\.[A-Z][A-Z0-9_]+)+\b", path.read_text())
    assert not {key for key in named if not any(known == key or known.startswith(f"{key}.") for known in keys)}


DOORS = {"train_net.py": "train", "fit_pca.py": "fit", "demo.py": "predict"}
OF_TORCHRUN = {"--nproc-per-node", "--nnodes", "--rdzv-endpoint", "--rdzv-backend", "--node-rank"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_take_the_flags_that_documents_give_them(path: Path) -> None:
    text = path.read_text()
    lines = [line for block in CODE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`(meinst [^`]+)`", text)]:
        words = shlex.split(line, comments=True) if "meinst " in line or ".py " in line else []
        if not words:
            continue
        if words[0] == "meinst":
            assert not words[1:] or words[1] in {*COMMANDS, "COMMAND", "NAME", "--help", "--version"}, line
        script = next((word for word in words if word in DOORS or re.fullmatch(r"(dev|deploy)/\w+\.py", word)), None)
        if script or (words[0] == "meinst" and words[1:2] and words[1] in COMMANDS):
            known = help_of(DOORS.get(script, script) if script else words[1]) | OF_TORCHRUN
            for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert flag in known, f"{script or words[1]} has no {flag}: {line}"


@functools.cache
def help_of(command: str) -> frozenset[str]:
    """The flags of a command of meinst, or those that a script under dev/ and what it consists of speak of."""
    if command in COMMANDS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
            main([command, "--help"])
        text = printed.getvalue()
    else:
        text = (ROOT / command).read_text()
        if command == "dev/benchmark.py":
            text += "".join(path.read_text() for path in (ROOT / "dev/benchmarks").glob("*.py"))
    return frozenset(re.findall(r"--[a-z][\w-]*", text))


def test_the_config_reference_has_every_key_with_its_default_and_meaning() -> None:
    cfg = get_cfg()
    add_meinst_config(cfg)
    values, added = flat(cfg), flat(cfg).keys() - flat(get_cfg()).keys()
    groups = list(read_groups(SOURCE.read_text()))
    documented = {key: (default, group.meaning) for group in groups for key, default in group.keys}
    assert set(documented) == added
    for key, (default, meaning) in documented.items():
        assert ast.literal_eval(default) == values[key], key
        assert len(meaning) > 20, f"{key} has no meaning"
    page = as_markdown(groups)
    assert all(page.count(f"| `{key}` |") == 1 for key in added)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra: pip install 'meinst_d2[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "config-reference.html").read_text()
    assert "MODEL.MEINST.MASK_OUTPUT" in reference
    assert "MaskEncoder" in (tmp_path / "api/encoding.html").read_text()


def test_the_tutorial_runs_from_top_to_bottom(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel: pip install 'meinst_d2[dev]'")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install 'meinst_d2[dev]'")
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert 'Path("output/tutorial")' in first.source
    first.source = first.source.replace('Path("output/tutorial")', f"Path({str(tmp_path)!r})")
    folder = {"metadata": {"path": str(ROOT / "docs")}}
    nbclient.NotebookClient(notebook, timeout=900, resources=folder).execute()
    text = "".join(str(output.get("text", "")) for cell in notebook.cells for output in cell.get("outputs", []))
    ap = {name: float(value) for name, value in re.findall(r"(boxes|masks|ceiling of masks) +AP +([\d.]+)", text)}
    assert ap["boxes"] > 30 and 20 < ap["masks"] < ap["ceiling of masks"]
