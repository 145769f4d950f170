"""Many iterations and many predictions in one process: memory, open files and processes stay what they were."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from soaking.run import TrainingRun, make_data

T = TypeVar("T")
SAMPLES = 100
WARM_UP = 0.3
"""The part of a run that memory is not compared for."""
WINDOW = 0.2
SIDES = (32, 320)


@dataclass
class Usage:
    """What a process used in the course of a run.

    Attributes:
        what: was run, in words.
        unit: of the axis.
        done: iterations or predictions at each sample.
        megabytes: resident.
        files: open ones.
        processes: children.
    """

    what: str
    unit: str
    done: list[int] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)

    def sample(self, done: int) -> None:
        self.done.append(done)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
        self.files.append(len(os.listdir("/proc/self/fd")))
        self.processes.append(len(_children()))

    @property
    def drift(self) -> float:
        """How much more memory the end used than the time after the warm-up, as a part of the latter."""
        early, late = map(statistics.median, _windows(self.megabytes))
        return late / early - 1

    @property
    def left_behind(self) -> tuple[int, int]:
        """How many more files and processes are always there at the end than after the warm-up.

        Some come and go: samples on their way from the loader are open files.
        """
        (files, more_files), (processes, more_processes) = (map(min, _windows(x)) for x in (self.files, self.processes))
        return more_files - files, more_processes - processes


def _windows(samples: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """Those of the time after the warm-up, and the last ones."""
    first, width = int(len(samples) * WARM_UP), max(1, int(len(samples) * WINDOW))
    return samples[first : first + width], samples[-width:]


def _children() -> list[str]:
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def train_long(folder: Path, iterations: int) -> Usage:
    """Train a tiny model in ``folder/run``, with ten checkpoints and ten evaluations."""
    import torch
    from detectron2.engine import HookBase

    from meinst_d2.commands import train as train_command
    from meinst_d2.engine.trainer import Trainer

    torch.set_num_threads(1)  # the model is too small for more
    make_data(folder / "data")
    usage = Usage("training", "iterations")
    period = max(1, iterations // SAMPLES)

    class Sampler(HookBase):
        def after_step(self) -> None:
            if (self.trainer.iter + 1) % period == 0:
                usage.sample(self.trainer.iter + 1)

    class Watched(Trainer):
        def build_hooks(self) -> list[HookBase]:
            return [Sampler(), *super().build_hooks()]

    run = TrainingRun(
        *(folder / "run", folder / "data", 1, iterations, iterations // 10, iterations // 10),
        overrides=("MODEL.MEINST.PRECISION", "float32"),
    )
    train_command.Trainer = Watched  # type: ignore[misc]
    train_command.train(train_command.parse_args(run.command))
    return usage


def predict_long(weights: Path, predictions: int) -> Usage:
    """Predict images of changing sizes with the model of a run, with pasted masks."""
    import numpy as np
    import torch

    from meinst_d2.model_zoo.trained import load_trained

    torch.set_num_threads(1)
    model = load_trained(weights=str(weights)).model
    rng = np.random.default_rng(0)
    usage = Usage("prediction", "images")
    period = max(1, predictions // SAMPLES)
    with torch.no_grad():
        for number in range(predictions):
            height, width = rng.integers(*SIDES, 2).tolist()
            pixels = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
            model([{"image": pixels, "height": 2 * height, "width": 2 * width}])
            if (number + 1) % period == 0:
                usage.sample(number + 1)
    return usage


def draw(usages: Sequence[Usage], path: Path) -> None:
    """Memory in the course of each run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from meinst_d2.files import atomic_path

    figure, axes = plt.subplots(1, len(usages), figsize=(5 * len(usages), 3), squeeze=False, layout="constrained")
    for axis, usage in zip(axes[0], usages, strict=True):
        axis.plot(usage.done, usage.megabytes)
        axis.set(title=f"{usage.what}: drift {usage.drift:+.1%}", xlabel=usage.unit, ylabel="resident memory (MB)")
        axis.set_ylim(0, 1.2 * max(usage.megabytes))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
    plt.close(figure)
