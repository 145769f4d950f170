"""SIGTERM, and processes that are killed: training saves and ends, or says what happened, and never waits for ever."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from soaking.run import TrainingRun, kill_all

from meinst_d2.checkpoint.resume import open_last_whole
from meinst_d2.engine.launch import EXIT_CODE, Preempted, Termination
from meinst_d2.engine.trainer import LostWorkerError
from tests.engine.test_engine import run_cfg, train

TIMEOUT = 120


pytestmark = pytest.mark.usefixtures("shapes")


def wait_for(run: TrainingRun, line: str) -> None:
    """Until something has happened in a run."""
    end = time.monotonic() + TIMEOUT
    while not any(event.startswith(line) for event in run.events()):
        assert time.monotonic() < end, run.output[-2000:]
        time.sleep(0.02)


@pytest.mark.parametrize(("processes", "send"), [(1, os.killpg), (2, os.kill)])
def test_sigterm_saves_and_ends(data: Path, tmp_path: Path, processes: int, send: Callable[[int, int], None]) -> None:
    """Checkpoints are far apart, so that it is SIGTERM that saves."""
    run = TrainingRun(tmp_path / "run", data, processes, iterations=10**6, checkpoint_period=10**5, eval_period=0)
    process = run.start()
    try:
        wait_for(run, "iteration 3 ")
        send(process.pid, signal.SIGTERM)
        assert process.wait(TIMEOUT) == EXIT_CODE, run.output[-2000:]
    finally:
        kill_all(process)
    found = open_last_whole(run.folder)
    last = next(event for event in reversed(run.events()) if event.startswith("iteration "))
    assert found is not None and found.path.name == f"model_{int(last.split()[1]):07d}.pth"
    assert "SIGTERM: training ends after iteration" in (run.folder / "log.txt").read_text()


def test_a_run_ended_by_sigterm_and_resumed_is_the_same_run(tmp_path: Path) -> None:
    whole = train(run_cfg(tmp_path / "whole")).model.state_dict()
    with pytest.raises(Preempted):
        train(run_cfg(tmp_path / "parts"), False, AfterStep(1, lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    resumed = train(run_cfg(tmp_path / "parts"), resume=True)
    assert resumed.start_iter == 2
    assert all(torch.equal(value, whole[name]) for name, value in resumed.model.state_dict().items())


class AfterStep(HookBase):
    """Calls a function with the trainer after one iteration."""

    def __init__(self, iteration: int, function: Callable[[Any], None]) -> None:
        self.iteration, self.function = iteration, function

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            self.function(self.trainer)


def test_sigterm_ends_an_evaluation_at_once() -> None:
    termination = Termination()
    with termination.handled():
        with pytest.raises(Preempted) as ended, termination.raising():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(TIMEOUT)
        assert ended.value.code == EXIT_CODE == 143
        with pytest.raises(Preempted), termination.raising():
            raise AssertionError("it had come before")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_killed_loader_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    def kill_loader(trainer: Any) -> None:
        os.kill(trainer._trainer._data_loader_iter._workers[0].pid, signal.SIGKILL)
        time.sleep(1)

    cfg = run_cfg(tmp_path, "DATALOADER.NUM_WORKERS", 1, "SOLVER.MAX_ITER", 50, "SOLVER.CHECKPOINT_PERIOD", 2)
    with pytest.raises(LostWorkerError, match=r"lower DATALOADER\.NUM_WORKERS and --resume .*killed by signal"):
        train(cfg, False, AfterStep(3, kill_loader))
    found = open_last_whole(tmp_path / "run")
    assert found is not None and found.path.name == "model_0000001.pth"
