"""Which checkpoint a run resumes from, that resuming changes nothing, SIGTERM, and processes that are killed."""

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from soaking.run import TrainingRun, compare, iterations_lost, kill_all
from torch.multiprocessing import ProcessRaisedException, start_processes

from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.checkpoint.resume import open_last_whole
from meinst_d2.data.datasets import DatasetError
from meinst_d2.engine.launch import EXIT_CODE, LostWorkerError, Preempted, Termination, launch
from meinst_d2.files import remove_unfinished
from tests.engine.test_engine import run_cfg, train
from tests.modeling.test_retinanet import RETINANET

pytestmark = pytest.mark.usefixtures("shapes")


@pytest.mark.parametrize(
    ("processes", "moments"),
    [(1, ("best@3", "gradients@4", "checkpoint@5", "tag@7", "evaluation@7")), (2, ("checkpoint@3",))],
)
def test_a_killed_run_ends_like_another(data: Path, tmp_path: Path, processes: int, moments: tuple[str, ...]) -> None:
    whole = TrainingRun(tmp_path / "whole", data, processes, iterations=10)
    killed = TrainingRun(tmp_path / "killed", data, processes, iterations=10)
    assert whole.finish() == 0, whole.output[-2000:]
    for moment in moments:
        assert killed.finish(resume=True, kill=moment) == -9, killed.output[-2000:]
    lost = 0
    if processes == 2:  # one of the two alone
        lost = killed.finish(resume=True, kill="gradients@6", only_process=1)
        sentence = "meinst train: process 1 of 2 ended (SIGKILL) and the others with it; the last checkpoint is whole"
        assert sentence in killed.output
    assert lost == processes - 1 and killed.finish(resume=True) == 0
    assert compare(whole, killed) == []
    assert len(iterations_lost(killed.events())) == len(moments) + lost
    assert max(iterations_lost(killed.events())) <= killed.checkpoint_period
    assert not list(killed.folder.glob(".*.pth"))  # what was half written is gone


def test_two_finished_runs_that_differ_are_told_apart(tmp_path: Path) -> None:
    """What the test above would say if it had something to say."""
    runs = [TrainingRun(tmp_path / str(number), tmp_path) for number in range(2)]
    for number, run in enumerate(runs):
        run.folder.mkdir()
        loss = (1.0 + number * 2.0**-52).hex()
        (run.folder / "events.txt").write_text(f"start 0\niteration 0 loss={loss}\n")
        content = {"model": {"w": torch.ones(2)}, "optimizer": [{"lr": 1.0}], "iteration": 1 + number}
        torch.save(content, run.folder / "model_final.pth")
        content["model"]["w"][1] += number * 1e-7
        torch.save(content, run.folder / "model_best.pth")
    assert compare(*runs) == [
        "losses of iteration 0",
        "model_final.pth/iteration: differs",
        "model_best.pth/model/w: differs",
        "model_best.pth/iteration: differs",
    ]


def checkpoint(path: Path, iteration: int) -> Path:
    torch.save({"model": {"w": torch.full((1000,), float(iteration))}, "iteration": iteration}, path)
    return path


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def bit_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = content.index(b"\0\0\x10\x41" * 4)  # 9.0
    content[at + 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncated, bit_flipped, Path.unlink, lambda path: path.write_bytes(b"")])
def test_of_a_damaged_checkpoint_the_one_before_it_is_taken(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    for iteration in (3, 6, 9, 12):  # 12 is of an earlier run in the same folder
        checkpoint(tmp_path / f"model_{iteration:07d}.pth", iteration)
    checkpoint(tmp_path / "model_best.pth", 6)
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert open_last_whole(tmp_path).path.name == "model_0000009.pth"
    damage(tmp_path / "model_0000009.pth")
    found = open_last_whole(tmp_path)
    assert found.path.name == "model_0000006.pth" and len(found.passed_over) == 1
    assert "model_0000009.pth" in found.passed_over[0]
    truncated(tmp_path / "model_0000006.pth")
    assert open_last_whole(tmp_path).path.name == "model_0000003.pth"
    truncated(tmp_path / "model_0000003.pth")
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*0009.*0006.*0003.*delete .*last_checkpoint"):
        open_last_whole(tmp_path)


def test_files_that_are_not_whole_are_passed_over_and_removed(tmp_path: Path) -> None:
    assert open_last_whole(tmp_path) is None
    for iteration in (3, 6):
        checkpoint(tmp_path / f"model_{iteration:07d}.pth", iteration)
    truncated(checkpoint(tmp_path / "model_final.pth", 7))
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert open_last_whole(tmp_path).path.name == "model_0000006.pth"
    (folder := tmp_path / "half").mkdir()
    kept = ["model_0000003.pth", ".model.pth", ".hidden_file.npz", ".model_0000003.abcdefgh.npz", ".mine.abc.pth"]
    for name in (*kept, ".model_0000003.ab_12xyz.pth", ".model_best.abcdefgh.pth"):
        (folder / name).touch()
    remove_unfinished(folder, ".pth")
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


def test_training_resumes_before_a_truncated_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = train(run_cfg(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2))
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    truncated(tmp_path / "again/model_final.pth")
    truncated(tmp_path / "again/model_0000003.pth")
    cfg = run_cfg(tmp_path, "SOLVER.CHECKPOINT_PERIOD", 2, "OUTPUT_DIR", str(tmp_path / "again"))
    logging.getLogger("fvcore").propagate = True
    with caplog.at_level(logging.WARNING):
        resumed = train(cfg, resume=True)
    # A set: pytest also attaches its handler to a logger that does not propagate, and then this one does.
    warnings = {record.getMessage() for record in caplog.records if "earlier checkpoint" in record.getMessage()}
    assert ["model_final.pth" in x or "model_0000003.pth" in x for x in warnings] == [True, True]
    assert resumed.start_iter == 2
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def test_averages_and_the_running_normalizer_of_retinanet_resume(tmp_path: Path) -> None:
    for kind, overrides in (("average", ("SOLVER.EMA_DECAY", 0.9)), ("normalizer", RETINANET)):
        overrides, folder = (*overrides, "SOLVER.CHECKPOINT_PERIOD", 2), tmp_path / kind
        whole = train(run_cfg(folder / "whole", *overrides))
        train(run_cfg(folder / "parts", *overrides))
        (folder / "parts/run/last_checkpoint").write_text("model_0000001.pth")
        stored = read_checkpoint(folder / "parts/run/model_0000001.pth")
        resumed = train(run_cfg(folder / "parts", *overrides), resume=True)
        assert resumed.start_iter == 2
        if kind == "normalizer":
            assert resumed.model.loss_normalizer == whole.model.loss_normalizer != stored["loss_normalizer"]["value"]
        for of_whole, of_resumed in ((whole.model, resumed.model), (whole.evaluated_model, resumed.evaluated_model)):
            for name, value in of_whole.state_dict().items():
                assert torch.equal(of_resumed.state_dict()[name], value), name


TIMEOUT = 120


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


@pytest.mark.parametrize("refines", [False, True])
def test_a_run_ended_by_sigterm_and_resumed_is_the_same_run(tmp_path: Path, refines: bool) -> None:
    some = (
        "MODEL.MEINST.REFINE.ENABLED",
        refines,
        "MODEL.MEINST.REFINE.SAMPLES_PER_IMAGE",
        2,
        "MODEL.MEINST.REFINE.CLASSIFY",
        True,
        "MODEL.MEINST.REFINE.DETAIL_FEATURE",
        "res2",
    )
    whole = train(run_cfg(tmp_path / "whole", *some)).model.state_dict()
    with pytest.raises(Preempted):
        train(run_cfg(tmp_path / "parts", *some), False, AfterStep(1, lambda _: os.kill(os.getpid(), signal.SIGTERM)))
    resumed = train(run_cfg(tmp_path / "parts", *some), resume=True)
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


@pytest.mark.parametrize("error", [DatasetError("look here"), LostWorkerError("look here"), KeyError("x")])
def test_what_another_process_says_ends_the_job(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fork(*_: Any) -> None:
        start_processes(raising, (error,), 2, start_method="fork")

    monkeypatch.setattr("meinst_d2.engine.launch.launch_processes", fork)
    is_known = not isinstance(error, KeyError)
    with pytest.raises(SystemExit if is_known else ProcessRaisedException, match="^meinst train: look here$|KeyError"):
        launch(raising, 2, 1, 0, "auto", ())


def raising(_: int, error: Exception) -> None:
    raise error


def test_processes_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    launch(write_threads, 2, 1, 0, "auto", (tmp_path,))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["1", "1"]


def write_threads(folder: Path) -> None:
    (folder / str(comm.get_rank())).write_text(str(torch.get_num_threads()))
