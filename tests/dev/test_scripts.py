"""The scripts under dev/ start, from any folder, and the Makefile names tests that are there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import compare
import pytest
import runs

from meinst_d2.commands import fit as fit_command
from meinst_d2.data.image_files import read_image
from meinst_d2.encoding import SigmoidClamp
from meinst_d2.engine.launch import Preempted
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
    for folder in ("inference", "code/inference"):  # neither is written over the other
        assert (tmp_path / "out" / folder / "coco_instances_results.json").is_file()


def test_a_comparison_is_resumed_and_then_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[str] = []
    after_step = runs.TrainingClock.after_step

    def step_of_1000_seconds(clock: runs.TrainingClock) -> None:
        after_step(clock)
        clock.seconds += 1000
        steps.append(Path(clock.trainer.cfg.OUTPUT_DIR).parent.name)
        if len(steps) == 4:  # the first of three of Mask R-CNN
            clock.trainer.termination.requested = True  # as by SIGTERM

    monkeypatch.setattr(runs.TrainingClock, "after_step", step_of_1000_seconds)
    monkeypatch.chdir(ROOT)
    config, out = "configs/quick/tiny.yaml", tmp_path / "out"
    command = ["--config-file", config, "--seeds", "0", "--iterations", "3", "--size", "64", "--sides", "12", "50"]
    command += ["--train-images", "8", "--val-images", "4", "--timed-images", "2", "--drawn-images", "2"]
    command += ["--variant", "tiny=", "--variant", "Mask R-CNN=@configs/demo/shapes_mask_rcnn_p2.yaml"]
    command += ["--output", str(out), "MODEL.MEINST.DIM_MASK", "8", "SOLVER.WARMUP_ITERS", "1"]
    command += ["SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    with pytest.raises(Preempted):
        compare.main(command)
    assert steps == ["tiny"] * 3 + ["Mask R-CNN"] * 2
    for _ in range(2):
        compare.main(command)
        assert steps == ["tiny"] * 3 + ["Mask R-CNN"] * 3
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    for name, variant in summary["variants"].items():
        run = variant["runs"][0]
        assert run["seconds"] // 1000 == 3 and Path(run["weights"]) == out / name / "seed_0/model_final.pth"
        assert {"segm", "bbox"} <= run["results"].keys() and run["ms_per_image"] > 0
        assert variant["over_seeds"]["train min"] == {"mean": run["seconds"] / 60, "std": None}
    assert summary["variants"]["tiny"]["over_seeds"]["ms ratio"]["mean"] == 1
    header, *rows = capsys.readouterr().out.split("\n\n")[-2].splitlines()
    assert header.split() == " ".join([*compare.METRICS, *compare.TIMES]).split()
    assert [row[:12].strip() for row in rows] == ["tiny", "Mask R-CNN"]
    height, width = read_image(out / "compare.png", "RGB").shape[:2]
    assert (width, height) == (960, 680)  # ground truth and two variants of two images, and the titles
    with pytest.raises(SystemExit, match="has runs on other data"):
        compare.main(["5" if word == "4" else word for word in command])  # validation images


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
