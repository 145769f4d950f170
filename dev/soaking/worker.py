#!/usr/bin/env python
"""A small training run as meinst train makes it, which writes down every loss and can kill itself at a given moment.

Run by dev/soak.py and the tests, each time in a session of its own.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.commands import train as train_command
from meinst_d2.engine.launch import launch
from meinst_d2.engine.step import TrainStep
from meinst_d2.engine.trainer import Trainer
from meinst_d2.modeling.meta_arch import MEInstDetector
from soaking.run import EVENTS, MOMENTS


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=Path, required=True, help=f"folder of {EVENTS}")
    parser.add_argument("--kill", default="", metavar="MOMENT@ITERATION", help=f"moments: {', '.join(MOMENTS)}")
    parser.add_argument("--only-process", type=int, help="kill this one instead of all")
    parser.add_argument("rest", nargs="+", help="of meinst train, after --")
    return parser.parse_args()


class Recorder(HookBase):
    """Writes what happens, line by line, in the main process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: str) -> None:
        if comm.is_main_process():
            with self.path.open("a") as file:
                file.write(line + "\n")

    def before_train(self) -> None:
        self.write(f"start {self.trainer.start_iter}")

    def after_step(self) -> None:
        values = {name: value for name, (value, _) in self.trainer.storage.latest().items() if "loss" in name}
        values["lr"] = self.trainer.optimizer.param_groups[0]["lr"]
        self.write(f"iteration {self.trainer.iter} " + " ".join(f"{k}={float(v).hex()}" for k, v in values.items()))

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with lines before and after it."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.write(f"begin {name}")
            result = function(*args, **kwargs)
            self.write(f"end {name}")
            return result

        return recorded


class Killer(HookBase):
    """SIGKILL at one moment of one iteration."""

    def __init__(self, moment: str, only_process: int | None) -> None:
        self.moment, _, iteration = moment.partition("@")
        self.iteration = int(iteration or -1)
        self.only_process = only_process
        self.images = 0

    def reach(self, moment: str) -> None:
        if self.moment != moment or self.iteration != get_event_storage().iter:
            return
        if self.only_process is None:
            os.killpg(os.getpgid(0), signal.SIGKILL)
        elif self.only_process == comm.get_rank():
            os.kill(os.getpid(), signal.SIGKILL)

    def before_step(self) -> None:
        self.reach("before")

    def after_step(self) -> None:
        self.reach("learned")

    def after_backward(self, step: TrainStep) -> None:
        self.reach("gradients")

    def save(self, content: Any, path: Any) -> Any:
        """As torch.save, which may end in the middle of a checkpoint."""
        if not isinstance(path, os.PathLike):
            return SAVE(content, path)
        buffer = io.BytesIO()
        SAVE(content, buffer)
        with open(path, "wb") as file:
            file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
            file.flush()
            self.reach("best" if "model_best" in Path(path).name else "checkpoint")
            file.write(buffer.getvalue()[len(buffer.getvalue()) // 2 :])

    def tag(self, checkpointer: MEInstCheckpointer, name: str) -> None:
        self.reach("tag")
        TAG(checkpointer, name)

    def forward(self, model: MEInstDetector, inputs: Any) -> Any:
        if not model.training:
            self.images += 1
            if self.images % 2 == 0:
                self.reach("evaluation")
        return FORWARD(model, inputs)


SAVE, TAG, FORWARD = torch.save, MEInstCheckpointer.tag_last_checkpoint, MEInstDetector.forward


def train(args: argparse.Namespace, options: argparse.Namespace) -> None:
    """In every process: meinst train's main with the two hooks."""
    recorder, killer = Recorder(args.events / EVENTS), Killer(args.kill, args.only_process)
    torch.save = recorder.around("save", killer.save)
    TrainStep.after_backward = lambda *call: killer.after_backward(*call)  # type: ignore[method-assign]
    MEInstCheckpointer.tag_last_checkpoint = lambda *call: killer.tag(*call)  # type: ignore[method-assign]
    MEInstDetector.forward = lambda *call: killer.forward(*call)  # type: ignore[method-assign]

    class Watched(Trainer):
        def build_hooks(self) -> list[HookBase]:
            return [recorder, killer, *super().build_hooks()]

        @classmethod
        def test(cls, *call: Any, **kwargs: Any) -> Any:
            return recorder.around("evaluation", super().test)(*call, **kwargs)

    train_command.Trainer = Watched  # type: ignore[misc]
    train_command.train(options)
    recorder.write("finished")


def main() -> None:
    args = parse_args()
    options = train_command.parse_args(args.rest)
    launch(train, options.num_gpus, 1, 0, options.dist_url, (args, options))


if __name__ == "__main__":
    main()
