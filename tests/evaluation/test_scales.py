"""One model at several test scales."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.commands import evaluate as evaluate_command
from meinst_d2.data.datasets import register_shapes
from meinst_d2.data.shapes import ShapesConfig, generate
from meinst_d2.engine import Trainer
from meinst_d2.evaluation import coco
from meinst_d2.evaluation.coco import evaluate_at_scale
from tests.conftest import ROOT
from tests.models import tiny_cfg, tiny_model

NUM_IMAGES = 4
# An untrained head that is sure of itself, and little to compute.
SMALL = ("MODEL.MEINST.PRIOR_PROB", 0.3, "TEST.DETECTIONS_PER_IMAGE", 10, "MODEL.MEINST.MASK_SIZE", 14)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated shapes of 96 x 128 pixels, and a tiny model."""
    folder = tmp_path_factory.mktemp("scales")
    generate(folder, {"train": 1, "val": NUM_IMAGES}, ShapesConfig(height=96, width=128, max_objects=4, max_side=60))
    register_shapes(folder)
    MEInstCheckpointer(tiny_model(*SMALL), str(folder)).save("model")
    return folder


class Recorder(torch.nn.Module):
    """Finds nothing, and remembers what it saw. A call takes a second of its own clock, the first calls a hundred."""

    def __init__(self, slow_calls: int = 0) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []
        self.slow_calls = slow_calls
        self.now = 0.0

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert not torch.is_grad_enabled()
        self.seen += [tuple(x["image"].shape[1:]) for x in inputs]
        self.now += 100 if len(self.seen) <= self.slow_calls else 1
        nothing = {"scores": torch.zeros(0), "pred_classes": torch.zeros(0, dtype=torch.int64)}
        empty = Instances((96, 128), pred_boxes=Boxes(torch.zeros(0, 4)), **nothing)
        return [{"instances": empty} for _ in inputs]


def boxes_only(folder: Path, max_size: int = 1333) -> CfgNode:
    return tiny_cfg("MODEL.MASK_ON", False, "OUTPUT_DIR", str(folder / "x"), "INPUT.MAX_SIZE_TEST", max_size)


def test_only_the_size_of_the_input_changes_and_the_long_side_is_capped(folder: Path) -> None:
    model = Recorder()
    for scale, max_size in ((48, 1333), (192, 1333), (192, 160)):
        cfg = boxes_only(folder, max_size)
        before = cfg.dump()
        evaluate_at_scale(cfg, model, "shapes_val", scale, limit=1, warm_up=0)
        assert cfg.dump() == before and (folder / f"x/{scale}/inference/coco_instances_results.json").is_file()
    assert model.seen == [(48, 64), (192, 256), (120, 160)]


def test_the_clock_starts_after_the_warm_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(slow_calls=2)
    monkeypatch.setattr(coco, "time", SimpleNamespace(perf_counter=lambda: model.now))
    result = evaluate_at_scale(boxes_only(folder), model, "shapes_val", 48, warm_up=2)
    assert len(model.seen) == 2 + NUM_IMAGES and (result["scale"], result["images"]) == (48, NUM_IMAGES)
    assert (result["model_seconds_per_image"], result["loading_seconds_per_image"]) == (1, 0)


def test_waiting_for_the_loader_is_counted_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder()

    def slow_loader(cfg: CfgNode, name: str) -> Any:
        class Slow(list):
            def __iter__(self) -> Any:
                for batch in list.__iter__(self):
                    model.now += 10
                    yield batch

        return Slow(build_detection_test_loader(cfg, name))

    monkeypatch.setattr(coco, "time", SimpleNamespace(perf_counter=lambda: model.now))
    monkeypatch.setattr(coco, "build_detection_test_loader", slow_loader)
    result = evaluate_at_scale(boxes_only(folder), model, "shapes_val", 48, limit=3, warm_up=1)
    assert result["images"] == 3 and result["images_per_second"] == 1  # of the model alone
    assert (result["model_seconds_per_image"], result["loading_seconds_per_image"]) == (1, 10)


def test_the_command_finds_what_train_net_finds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = ["MODEL.WEIGHTS", str(folder / "model.pth"), *map(str, SMALL)]
    start = ["--config-file", str(ROOT / "configs/quick/tiny.yaml"), "--scales", "64,96"]
    evaluate_command.main([*start, "--output", str(folder / "out"), *weights])
    written = json.loads((folder / "out/scales.json").read_text())
    small, trained = written["scales"]
    assert (written["dataset"], written["max_size"], trained["scale"], trained["images"]) == ("shapes_val", 1333, 96, 4)
    cfg = tiny_cfg("OUTPUT_DIR", str(folder / "direct"), *SMALL)
    model = build_model(cfg).eval()
    MEInstCheckpointer(model).load(str(folder / "model.pth"))
    expected = Trainer.test(cfg, model)
    for task in ("bbox", "segm"):
        assert {k: v for k, v in trained[task].items() if v is not None} == {
            k: pytest.approx(v) for k, v in expected[task].items() if v == v
        }
    results = [folder / "out" / scale / "inference/coco_instances_results.json" for scale in ("64", "96")]
    assert results[0].read_text() != results[1].read_text()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["96"]]
    assert [float(x) for x in row[1:7]] == [
        pytest.approx(trained[task][k], abs=0.051) for task in ("bbox", "segm") for k in ("AP", "AP50", "AP75")
    ]
    assert float(row[7]) == pytest.approx(trained["images_per_second"], abs=0.051)
    assert small["images_per_second"] == pytest.approx(1 / small["model_seconds_per_image"])


def test_without_scales_it_is_the_configs_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config-file", str(ROOT / "configs/quick/tiny.yaml"), "--output", str(folder / "own"), "--limit", "1"]
    weights = ["MODEL.WEIGHTS", str(folder / "model.pth"), "INPUT.MIN_SIZE_TEST", "64", *map(str, SMALL)]
    evaluate_command.main([*config, "--max-size", "70", *weights])
    written = json.loads((folder / "own/scales.json").read_text())
    assert [result["scale"] for result in written["scales"]] == [64] and written["max_size"] == 70
    assert "AP50" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL.WEIGHTS is empty"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty: name a dataset with --dataset"),
        (["MODEL.WEIGHTS", "gone.pth"], "MODEL.WEIGHTS gone.pth does not exist"),
        (
            ["--dataset", "shapes_test", "MODEL.WEIGHTS", "http://x/y.pth"],
            "the dataset 'shapes_test' is not registered",
        ),
    ],
)
def test_what_is_wrong_is_a_sentence(
    folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectron2.modeling.build_model", None)
    start = ["--config-file", str(ROOT / "configs/quick/tiny.yaml"), "--output", str(folder / "wrong")]
    with pytest.raises(SystemExit) as error:
        evaluate_command.main([*start, *arguments, "MODEL.MASK_ON", "False"])
    assert message in str(error.value) and not (folder / "wrong").exists()


@pytest.mark.parametrize("text", ["", "400,", "0", "400 600", "a"])
def test_scales_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate_command.parse_args(["--config-file", "c.yaml", "--scales", text])
    assert "is not a list of pixels such as 400,600,800" in capsys.readouterr().err
