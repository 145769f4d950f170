"""The scripts under dev/ start, from any folder, and the Makefile names tests that are there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import runs

from meinst_d2.commands import fit as fit_command
from meinst_d2.encoding import SigmoidClamp
from tests.conftest import ROOT

SCRIPTS = sorted(path for path in (ROOT / "dev").glob("*.py") if path.read_text().startswith("#!"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_answers_from_any_folder(script: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"usage: {script.name}" in done.stdout and "example" in done.stdout


def test_a_small_demo(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "dev/demo_shapes.py"), "--output", "out", "--train-images", "8"]
    command += ["--val-images", "2", "SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "1", "MODEL.MEINST.DIM_MASK", "8"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"losses.png", "detections.png", "model_final.pth"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert json.loads((tmp_path / "out/summary.json").read_text())["ceiling"]["AP50"] == 100


def test_components_are_fitted_as_the_config_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(fit_command, "main", asked.append)
    overrides = ["MODEL.MEINST.ENCODER", "ClassPCAEncoder", "MODEL.MEINST.SIGMOID_CLAMP", "(0.02, 0.02)"]
    overrides += ["MODEL.MEINST.SIGMOID", "False", "MODEL.MEINST.WHITEN", "False", "MODEL.MEINST.DIM_MASK", "8"]
    runs.fit(runs.load_config("", overrides), "shapes_train", tmp_path / "c.npz")
    args = fit_command.parse_args(asked[0])
    assert (args.dim, args.mask_size, args.clamp) == (8, 28, SigmoidClamp(0.02, 0.02))
    assert args.class_specific and args.no_sigmoid and args.no_whiten


def test_the_makefile_names_tests_that_exist_and_need_no_detectron2() -> None:
    def files_of(target: str) -> list[str]:
        command = ["make", "-n", "--no-print-directory", target]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return re.findall(r"tests/\S+", printed)

    assert all((ROOT / file).exists() for file in files_of("test-quick"))
    code = "import sys; sys.modules['detectron2'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--collect-only", "-q", "-p", "no:xdist", *files_of("test-core")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
