"""The command itself: what it lists, how fast it can answer, what a mistake is told, what a wheel installs."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import meinst_d2
from meinst_d2.commands import COMMANDS, MODULES, main
from tests.conftest import ROOT

HEAVY = {"torch", "numpy", "detectron2", "matplotlib", "cv2"}
WITH_DETECTRON2S_PARSER = {"train", "fit"}


def imported_by(code: str) -> set[str]:
    """The heavy packages that are imported in a new process that runs this."""
    code += "\nimport sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stderr.split())


def helps(*commands: str) -> str:
    """Code that asks for help, of commands or of meinst itself."""
    asked = [[command, "--help"] for command in commands] or [["--help"]]
    return f"""
from meinst_d2.commands import main
for arguments in {asked!r}:
    try:
        main(arguments)
    except SystemExit as stop:
        assert stop.code == 0
"""


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    for name, what in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", printed, re.MULTILINE)
        assert find_spec(f"meinst_d2.commands.{MODULES.get(name, name)}") is not None


def test_the_readme_explains_every_command() -> None:
    table = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"`meinst ([a-z][a-z-]*)`", table)) == set(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    assert imported_by(helps()) == set()
    assert imported_by(helps(*COMMANDS.keys() - WITH_DETECTRON2S_PARSER)) == set()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["predcit"], "meinst: unknown command predcit: did you mean predict?"),
        (["zzz", "--help"], "meinst: unknown command zzz: see meinst --help"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_not_a_command(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and sentence in capsys.readouterr().err


def test_without_detectron2_a_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("detectron2", "meinst_d2.commands.train"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(SystemExit, match=r"meinst train: this part of meinst_d2 needs Detectron2.*pip install"):
        main(["train"])


@pytest.mark.parametrize("door", ["train_net.py", "fit_pca.py", "demo.py"])
def test_doors_answer_from_any_folder(door: str, tmp_path: Path) -> None:
    if door == "train_net.py":
        pytest.importorskip("detectron2")  # whose parser it has
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / door), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: meinst ") and "examples:" in done.stdout
    assert os.access(ROOT / door, os.X_OK)


def test_a_wheel_installs_the_command_and_the_configs(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for folder in ("meinst_d2", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = [*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True, capture_output=True)
    installed = site / "meinst_d2/model_zoo/configs"
    assert {x.relative_to(installed) for x in installed.rglob("*.yaml")} == {
        x.relative_to(ROOT / "configs") for x in (ROOT / "configs").rglob("*.yaml")
    }
    assert not (site / "tests").exists() and not (site / "dev").exists()

    def run(*command: str | Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    code = "from meinst_d2 import model_zoo; print(model_zoo.get_config_file('MEInst_R_50_1x'))"
    assert run(sys.executable, "-c", code) == f"{installed / 'MEInst_R_50_1x.yaml'}\n"
    assert run(site / "bin/meinst", "--version") == f"meinst_d2 {meinst_d2.__version__}\n"
    assert run(sys.executable, "-m", "meinst_d2.commands", "--help") == run(site / "bin/meinst", "--help")
