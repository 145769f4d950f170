"""Evaluation on the way, the best weights, patience, averaged weights, validation losses and pictures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.engine import Trainer
from meinst_d2.engine.hooks import Validation, WeightAverage, draw_sample, validation_losses
from meinst_d2.engine.launch import Termination
from meinst_d2.model_zoo.publish import publish_run
from tests.engine.test_engine import run_cfg, train
from tests.models import image_with, tiny_model

pytestmark = pytest.mark.usefixtures("shapes")


class Run:
    """A trainer whose evaluations give a list of values."""

    def __init__(self, values: list[float], *, max_iter: int = 20, **options: Any) -> None:
        self.values, self.best, self.best_at, self.ended = iter(values), [], [], None
        self.evaluated: list[int] = []
        self.validation = Validation(self.evaluate, keep_best=self.keep_best, **options)
        self.trainer = SimpleNamespace(
            start_iter=0, iter=0, max_iter=max_iter, finish=self.finish, termination=Termination()
        )
        self.validation.trainer = self.trainer  # type: ignore[assignment]

    def evaluate(self) -> dict[str, Any]:
        self.evaluated.append(self.trainer.storage.iter)
        return {"segm": {"AP": next(self.values)}}

    def keep_best(self, value: float, iteration: int) -> None:
        self.best.append(value)
        self.best_at.append(iteration)

    def finish(self, iteration: int, reason: str) -> None:
        self.ended = reason
        self.trainer.max_iter = iteration + 1

    def go(self, start: int = 0, stop: int | None = None) -> None:
        """Iterations until ``stop``, or to the end."""
        self.trainer.start_iter = self.trainer.iter = start
        with EventStorage(start) as self.trainer.storage:
            self.validation.before_train()
            while self.trainer.iter < min(self.trainer.max_iter, stop or self.trainer.max_iter):
                self.trainer.storage.iter = self.trainer.iter
                self.validation.after_step()
                self.trainer.iter += 1
            self.trainer.storage.iter = self.trainer.iter
            self.validation.after_train()


def test_it_evaluates_every_period_and_keeps_the_best() -> None:
    run = Run([1, 2, 3], period=8)
    run.go()
    assert run.evaluated == [7, 15, 20] and run.best == [1, 2, 3]
    at_the_end_only = Run([1], period=0)
    at_the_end_only.go()
    assert at_the_end_only.evaluated == [20]
    run = Run([float("nan"), 3, 2, 3, 5], period=5, max_iter=25)
    run.go()
    assert run.best == [3, 5]


def test_training_ends_when_patience_does() -> None:
    run = Run([1, 5, 4, 4.5, 5, 9], period=2, patience=3)
    run.go()
    assert run.evaluated == [1, 3, 5, 7, 9] and run.trainer.iter == 10
    assert run.ended is not None and "has not risen above 5.00 in 3 evaluations" in run.ended
    cut = Run([1], period=4, patience=1)
    cut.validation.load_state_dict({"best": 2.0, "since_best": 0, "last_iteration": 3})
    cut.go(start=8)
    assert cut.evaluated == [7] and cut.ended and cut.trainer.iter == cut.trainer.max_iter == 8
    over = {"best": 2.0, "since_best": 3, "last_iteration": 7}
    for patience, evaluated in ((3, []), (4, [11])):
        again = Run([1], period=4, patience=patience)
        again.validation.load_state_dict(over)
        again.go(start=8)
        assert again.evaluated == evaluated and again.ended


def test_an_evaluation_that_was_cut_short_is_done_again() -> None:
    """The checkpoint of iteration 7 was written before its evaluation."""
    run = Run([1, 2, 3], period=8)
    run.go(start=8)
    assert run.evaluated == [7, 15, 20] and run.best_at == [7, 15, 19]
    done = Run([2, 3], period=8)
    done.validation.load_state_dict({"best": 1.0, "since_best": 0, "last_iteration": 7})
    done.go(start=8)
    assert done.evaluated == [15, 20]


def test_best_and_patience_go_on_after_a_stop() -> None:
    whole, first = (Run([5, 1, 2, 3, 4], period=2, patience=4) for _ in range(2))
    whole.go()
    first.go(stop=4)
    second = Run([2, 3, 4], period=2, patience=4)
    second.validation.load_state_dict(first.validation.state_dict())
    second.go(start=4)
    assert first.evaluated + second.evaluated == whole.evaluated == [1, 3, 5, 7, 9]
    assert second.ended == whole.ended and not second.best


def test_the_average_follows_the_weights() -> None:
    """Worked out by hand: 8, then decays of 2/11 and 3/12: 8 * 2/11 + 4 * 9/11, and a quarter of that + 12 * 3/4."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.register_buffer("components", torch.zeros(1))
    average = WeightAverage(model, 0.75)
    assert average.averaged_model is model and average.state_dict() == {}
    for weight, expected in ((8.0, 8.0), (4.0, 52 / 11), (12.0, 13 / 11 + 9)):
        with torch.no_grad():
            model.weight.fill_(weight)
            model.components.fill_(weight)
        average.after_step()
        averaged = average.averaged_model
        assert averaged.weight.item() == pytest.approx(expected) and averaged.components.item() == weight
    other = torch.nn.Linear(1, 1, bias=False)
    other.register_buffer("components", torch.zeros(1))
    again = WeightAverage(other, 0.75)
    again.load_state_dict(average.state_dict())
    assert torch.equal(again.averaged_model.weight, average.averaged_model.weight)
    assert again.state_dict()["updates"] == 3
    for _ in range(40):  # by then the decay is the one that was asked for
        average.after_step()
    before = average.averaged_model.weight.item()
    model.weight.data.fill_(0.0)
    average.after_step()
    assert average.averaged_model.weight.item() == pytest.approx(0.75 * before)
    with pytest.raises(ValueError, match=r"SOLVER\.EMA_DECAY = 1\.5 must be below 1"):
        WeightAverage(model, 1.5)


def test_a_run_keeps_its_best_and_evaluates_the_average(tmp_path: Path) -> None:
    cfg = run_cfg(
        tmp_path,
        *("DATASETS.TEST", ("shapes_val",), "TEST.EVAL_PERIOD", 2, "TEST.VALIDATION_LOSS", True),
        *("SOLVER.EMA_DECAY", 0.5, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.BEST_METRIC", "bbox/AP", "VIS_PERIOD", 3),
        *("MODEL.MEINST.SCORE_THRESH_TEST", 0.0),
    )
    trainer = train(cfg)
    content = read_checkpoint(tmp_path / "run/model_final.pth")
    assert content["ema"]["updates"] == 4
    weights, averaged = content["ema"]["raw"], content["model"]
    name = "proposal_generator.head.cls_logits.weight"
    assert not torch.equal(weights[name], averaged[name])

    best = read_checkpoint(tmp_path / "run/model_best.pth")
    assert best["iteration"] in (1, 3) and best["meinst"]["class_names"][0] == "ring"
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_final.pth"
    if best["iteration"] == 3:
        assert torch.equal(best["model"][name], averaged[name])

    rows = [json.loads(line) for line in (tmp_path / "run/metrics.json").read_text().splitlines()]
    evaluated = [row for row in rows if "validation/total_loss" in row]
    assert len(evaluated) >= 1 and evaluated[-1]["validation/loss_mask"] > 0

    other = tiny_model()
    MEInstCheckpointer(other).load(str(tmp_path / "run/model_final.pth"))
    assert torch.equal(other.state_dict()[name], averaged[name])
    (tmp_path / "run/config.yaml").write_text(cfg.dump())
    published = publish_run(tmp_path / "run", tmp_path, "tiny", "model_final.pth")[0]
    assert torch.equal(read_checkpoint(published)["model"][name], averaged[name])
    assert trainer.evaluated_model is trainer.weight_average.averaged_model


def test_validation_losses_are_those_of_one_batch() -> None:
    model = tiny_model("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01))
    batch = [image_with([[10.0, 8.0, 50.0, 48.0]]), image_with([]), image_with([[4.0, 4.0, 90.0, 60.0]] * 2)]
    with torch.no_grad():
        expected = {name: loss.item() for name, loss in model.train()(batch).items()}
    before = torch.get_rng_state()
    found = validation_losses(model, [[sample] for sample in batch])
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert found.pop("total_loss") == pytest.approx(sum(expected.values()), rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-5)
    losses = validation_losses(tiny_model(), [[image_with([])]])
    assert losses["loss_mask"] == losses["loss_box"] == 0 < losses["loss_cls"]


def test_what_is_evaluated(tmp_path: Path) -> None:
    loader = Trainer.build_validation_loader(run_cfg(tmp_path), "shapes_val")
    samples = [sample for batch in loader for sample in batch]
    assert len(samples) == 2 and all(len(sample["instances"].gt_mask_templates) for sample in samples)
    cfg = run_cfg(tmp_path, "MODEL.MASK_ON", False, "DATASETS.TEST", ("shapes_val",))
    (validation,) = [hook for hook in Trainer(cfg)._hooks if isinstance(hook, Validation)]
    assert validation.metric == "bbox/AP"
    two = run_cfg(tmp_path, "DATASETS.TEST", ("shapes_val", "shapes_train"))
    (validation,) = [hook for hook in Trainer(two)._hooks if isinstance(hook, Validation)]
    assert validation.metric == "shapes_val/segm/AP"


@pytest.mark.parametrize("mask_output", ["bitmask", "rle", "template"])
def test_a_sample_is_drawn_three_times(mask_output: str) -> None:
    model = tiny_model("MODEL.MEINST.MASK_OUTPUT", mask_output, "MODEL.MEINST.SCORE_THRESH_TEST", 0.0)
    picture = draw_sample(model, image_with([[10.0, 8.0, 50.0, 48.0]]), "BGR")
    assert picture.shape == (3, 64, 3 * 96) and picture.dtype == np.uint8 and model.training
    assert (picture[:, :, :96] != picture[:, :, 96:192]).any()  # the encoder is not perfect


@pytest.mark.parametrize("overrides", [("MODEL.MASK_ON", False), ("VIS_PERIOD", 1)])
def test_a_sample_without_masks_or_objects_is_drawn(overrides: tuple[Any, ...]) -> None:
    assert draw_sample(tiny_model(*overrides), image_with([]), "BGR").shape == (3, 64, 3 * 96)
