"""The commands of the README, on generated images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.models import build_from, image_with

CONFIG = ("--config-file", str(ROOT / "configs/quick/tiny.yaml"))
# An untrained head that is sure of itself, so that there is something to evaluate.
OVERRIDES = ("MODEL.MEINST.COMPONENTS", "components.npz", "MODEL.MEINST.PRIOR_PROB", "0.3")


def meinst(folder: Path, *arguments: str, fails: bool = False) -> str:
    """What the command prints."""
    return python(folder, "-m", "meinst_d2.commands", *arguments, fails=fails)


def python(folder: Path, *arguments: str, fails: bool = False) -> str:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"DETECTRON2_DATASETS": "data", "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == fails, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    size = ("--size", "96", "96", "--max-side", "60")
    meinst(folder, "shapes", "--output", "data/shapes", "--train", "24", "--val", "6", *size)
    meinst(folder, "fit", "--dataset", "shapes_train", "--dim", "8", "--output", "components.npz")
    return folder


@pytest.fixture(scope="module")
def trained(workspace: Path) -> str:
    return meinst(workspace, "train", *CONFIG, *OVERRIDES, "OUTPUT_DIR", "run")


def metrics_table(printed: str) -> list[str]:
    return [line.split("copypaste: ")[1] for line in printed.splitlines() if "copypaste" in line]


def test_training_ends_with_ap_that_evaluating_gives_again(workspace: Path, trained: str) -> None:
    table = metrics_table(trained)
    assert table[0] == "Task: bbox" and table[3] == "Task: segm" and "nan" not in table[5].split(",")[0]
    results = json.loads((workspace / "run/inference/coco_instances_results.json").read_text())
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(results[0])
    rows = [json.loads(line) for line in (workspace / "run/metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box", "loss_centerness", "loss_mask", "segm/AP"} <= set().union(*rows)
    assert "SEED: 0" in (workspace / "run/config.yaml").read_text()
    weights = ("MODEL.WEIGHTS", "run/model_final.pth", "MODEL.MEINST.COMPONENTS", "")
    again = meinst(workspace, "train", *CONFIG, "--eval-only", "OUTPUT_DIR", "evaluated", *weights)
    assert metrics_table(again) == metrics_table(trained)


def test_a_published_file_predicts_the_same_in_another_process(workspace: Path, trained: str) -> None:
    printed = meinst(workspace, "publish", "run", "--name", "tiny", "--output", "published").splitlines()
    said = [line for line in printed if line.startswith(("wrote ", "| "))]
    (file,) = (workspace / "published").iterdir()
    assert said[0] == f"wrote published/{file.name} with the weights of run/model_best.pth"
    assert said[-1].startswith("| tiny | shapes_train | 20 | ") and file.name in said[-1]

    model = build_from(ROOT / "configs/quick/tiny.yaml", "MODEL.WEIGHTS", str(workspace / "run/model_best.pth")).eval()
    image = {"image": image_with([])["image"], "height": 128, "width": 192}
    with torch.no_grad():
        expected = model([image])[0]["instances"]
    assert len(expected) > 0
    torch.save(image, workspace / "image.pt")
    (workspace / "predict.py").write_text(
        "import sys, torch; from meinst_d2 import model_zoo\n"
        "with torch.no_grad(): found = model_zoo.get(sys.argv[1])([torch.load('image.pt')])[0]['instances']\n"
        "torch.save({**found.get_fields(), 'pred_boxes': found.pred_boxes.tensor}, 'found.pt')\n"
    )
    python(workspace, str(workspace / "predict.py"), f"published/{file.name}")
    found = torch.load(workspace / "found.pt")
    torch.testing.assert_close(found.pop("pred_boxes"), expected.pred_boxes.tensor, rtol=0, atol=1e-4)
    for name, value in found.items():
        torch.testing.assert_close(value, expected.get(name), rtol=0, atol=1e-5)


def test_a_dataset_of_ones_own_needs_no_code(workspace: Path) -> None:
    shapes = "data/shapes/annotations/instances_{0}.json:data/shapes/{0}"
    datasets = [x for split in ("train", "val") for x in ("--coco-dataset", f"mine_{split}={shapes.format(split)}")]
    names = ("DATASETS.TRAIN", "('mine_train',)", "DATASETS.TEST", "('mine_val',)")
    short = ("SOLVER.MAX_ITER", "2", "OUTPUT_DIR", "mine", "TEST.VALIDATION_LOSS", "True", "VIS_PERIOD", "1")
    meinst(workspace, "train", *CONFIG, *datasets, *OVERRIDES, *names, *short)
    rows = [json.loads(line) for line in (workspace / "mine/metrics.json").read_text().splitlines()]
    assert rows[-1]["validation/loss_mask"] > 0
    about = torch.load(workspace / "mine/model_final.pth", weights_only=True)["meinst"]
    assert about["class_names"] == ["ring", "star", "crescent", "bar", "cut", "blob"]


def test_two_processes_train_without_a_gpu(workspace: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("Detectron2 starts processes on GPUs where there are any")
    overrides = ("SOLVER.MAX_ITER", "4", "OUTPUT_DIR", "two", "DATASETS.TEST", "()")
    meinst(workspace, "train", *CONFIG, "--num-gpus", "2", *OVERRIDES, *overrides)
    rows = [json.loads(line) for line in (workspace / "two/metrics.json").read_text().splitlines()]
    assert rows[-1]["iteration"] == 3
    assert (workspace / "two/model_final.pth").is_file()


def test_a_split_without_annotations_gives_its_result_file(workspace: Path, trained: str) -> None:
    file = workspace / "data/shapes/annotations/instances_val.json"
    content = json.loads(file.read_text())
    try:
        file.write_text(json.dumps({k: v for k, v in content.items() if k != "annotations"}))
        options = (*CONFIG, "--eval-only", "OUTPUT_DIR", "testdev", *OVERRIDES, "MODEL.WEIGHTS", "run/model_final.pth")
        meinst(workspace, "train", *options)
    finally:
        file.write_text(json.dumps(content))
    assert json.loads((workspace / "testdev/inference/coco_instances_results.json").read_text())


def test_what_is_wrong_is_one_sentence_and_nothing_is_written(workspace: Path) -> None:
    wrong = ("MODEL.MEINST.DIM_MASK", "9", "OUTPUT_DIR", "wrong")
    printed = meinst(workspace, "train", *CONFIG, *OVERRIDES, *wrong, fails=True)
    sentence = (
        "meinst train: the components in components.npz have D = 8, the config asks for MODEL.MEINST.DIM_MASK = 9"
    )
    assert printed.strip().splitlines()[-1].startswith(sentence)
    assert "Traceback" not in printed and not (workspace / "wrong").exists()
