"""A training run in processes of its own, that can be killed, started again and compared with another one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EVENTS = "events.txt"
MOMENTS = ("before", "gradients", "learned", "checkpoint", "tag", "evaluation", "best")
"""Before an iteration, between backward and update, after the update, in the middle of a checkpoint's file, between the
file and ``last_checkpoint``, in the middle of an evaluation, in the middle of the file of the best weights.
"""
IMAGES = {"train": 24, "val": 6}
SIZE = 64


def make_data(folder: Path) -> None:
    """Shapes, and components of their masks."""
    from meinst_d2.data.coco import read_coco_json
    from meinst_d2.data.shapes import ShapesConfig, generate
    from meinst_d2.encoding import fit_pca, save_components
    from meinst_d2.fitting.count import count_moments

    generate(folder, IMAGES, ShapesConfig(height=SIZE, width=SIZE, max_objects=4, min_side=16, max_side=50))
    moments, _ = count_moments(read_coco_json(folder / "annotations/instances_train.json"), 28)
    save_components(folder / "components.npz", [fit_pca(moments).truncated(8)], {})


@dataclass
class TrainingRun:
    """One OUTPUT_DIR, and the command that trains there.

    Attributes:
        folder: of the run.
        data: what :func:`make_data` wrote.
        processes: that train together.
        iterations, checkpoint_period, eval_period: of the schedule.
        overrides: further keys and values.
    """

    folder: Path
    data: Path
    processes: int = 1
    iterations: int = 12
    checkpoint_period: int = 2
    eval_period: int = 4
    overrides: Sequence[str] = field(default_factory=tuple)

    @property
    def command(self) -> list[str]:
        """Arguments of meinst train."""
        keys: dict[str, Any] = {
            "OUTPUT_DIR": self.folder,
            "DATASETS.TRAIN": "('soak_train',)",
            "DATASETS.TEST": "('soak_val',)",
            "MODEL.MEINST.COMPONENTS": self.data / "components.npz",
            "MODEL.MEINST.SCORE_THRESH_TEST": 0.0,
            "MODEL.MEINST.PRECISION": "float16",  # so that the loss is scaled
            "DATALOADER.NUM_WORKERS": 1,
            "INPUT.MIN_SIZE_TRAIN": "(48,64,80)",
            "INPUT.MIN_SIZE_TEST": SIZE,
            "SOLVER.MAX_ITER": self.iterations,
            "SOLVER.CHECKPOINT_PERIOD": self.checkpoint_period,
            "SOLVER.EMA_DECAY": 0.9,
            "TEST.EVAL_PERIOD": self.eval_period,
            "TEST.PATIENCE": 1000,
        }
        datasets = [
            f"--coco-dataset=soak_{split}={self.data}/annotations/instances_{split}.json:{self.data}/{split}"
            for split in IMAGES
        ]
        options = ["--config-file", str(ROOT / "configs/quick/tiny.yaml"), "--num-gpus", str(self.processes)]
        options += ["--dist-url", "auto", *datasets]
        return [*options, *(str(x) for pair in keys.items() for x in pair), *self.overrides]

    def start(self, resume: bool = False, kill: str = "", only_process: int | None = None) -> subprocess.Popen[str]:
        """Begin, in a session of its own.

        Args:
            resume: resume from the last checkpoint.
            kill: "MOMENT@ITERATION", one of :data:`MOMENTS`.
            only_process: kill this one instead of all.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ["--events", str(self.folder), *(["--kill", kill] if kill else [])]
        options += [] if only_process is None else ["--only-process", str(only_process)]
        command = [sys.executable, str(Path(__file__).with_name("worker.py")), *options, "--"]
        command += [*(["--resume"] if resume else []), *self.command]
        with (self.folder / "output.txt").open("a") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
            )

    def finish(self, timeout: float = 600, **options: Any) -> int:
        """Start and wait; the exit status, or the negative number of the signal that ended it."""
        process = self.start(**options)
        try:
            return process.wait(timeout)
        finally:
            kill_all(process)

    @property
    def output(self) -> str:
        """What its processes have printed."""
        return (self.folder / "output.txt").read_text()

    def events(self) -> list[str]:
        """What has happened so far, a line each."""
        path = self.folder / EVENTS
        return path.read_text().splitlines() if path.is_file() else []


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL to a run and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def losses_by_iteration(events: Sequence[str]) -> dict[int, set[str]]:
    """The different sets of losses that were written down for each iteration: one, if all is well."""
    found: dict[int, set[str]] = {}
    for line in events:
        if line.startswith("iteration "):
            _, iteration, losses = line.split(" ", 2)
            found.setdefault(int(iteration), set()).add(losses)
    return found


def iterations_lost(events: Sequence[str]) -> list[int]:
    """How many iterations each start had to do again."""
    lost, done = [], 0
    for line in events:
        word, _, rest = line.partition(" ")
        if word == "start":
            lost.append(done - int(rest))
        elif word == "iteration":
            done = int(rest.split(" ", 1)[0]) + 1
    return lost[1:]


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ in a bit."""
    import torch

    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__} and {type(other).__name__}"]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [x for key in one for x in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: lengths {len(one)} and {len(other)}"]
        return [x for i, pair in enumerate(zip(one, other, strict=True)) for x in differences(*pair, f"{where}/{i}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [f"{where}: differs"]


def compare(one: TrainingRun, other: TrainingRun) -> list[str]:
    """Where two finished runs differ: losses of any iteration, last checkpoint, best weights; empty if nowhere."""
    import torch

    found = []
    losses, others = losses_by_iteration(one.events()), losses_by_iteration(other.events())
    if losses.keys() != others.keys():
        found.append(f"iterations: {sorted(losses.keys() ^ others.keys())}")
    found += [f"losses of iteration {i}" for i in losses if i in others and len(losses[i] | others[i]) != 1]
    for name in ("model_final.pth", "model_best.pth"):
        contents = [torch.load(run.folder / name, weights_only=True) for run in (one, other)]
        found += differences(*contents, name)
    return found
