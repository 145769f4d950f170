"""Files of weights."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from meinst_d2.model_zoo.adelaidet import import_checkpoint
from meinst_d2.model_zoo.publish import publish_run
from tests.bad_input.case import Call, Case, show_with, train_with
from tests.models import tiny_cfg, tiny_model
from tests.published_configs import write_published_config

CLASSES = "proposal_generator.head.cls_logits.bias"
COMPONENTS = "proposal_generator.mask_encoder.components"
Write = Callable[[Path], object]


class Code:
    """Makes a folder when it is unpickled by a reader that trusts the file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made by a checkpoint",)


def dangerous(path: Path, zipped: bool = True) -> None:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"a": Code()}))
    else:
        torch.save({"a": Code()}, path, _use_new_zipfile_serialization=zipped)


def state(*overrides: Any, **changes: Any) -> dict[str, Any]:
    """The weights of the tiny model; what is changed has the name of a constant above."""
    return {**tiny_model(*overrides).state_dict(), **{globals()[name]: value for name, value in changes.items()}}


def saving(make: Callable[[], Any], cut: int = 0) -> Write:
    def write(path: Path) -> None:
        torch.save(make(), path)
        if cut:
            path.write_bytes(path.read_bytes()[:-cut])

    return write


def train(wrong: str, write: Write, name: str = "w.pth", *overrides: object, evaluate: bool = False) -> Case:
    def make(folder: Path) -> Call:
        write(folder / name)
        flags = ("--eval-only",) if evaluate else ()
        return train_with(folder, "MODEL.WEIGHTS", folder / name, *overrides, flags=flags)

    return Case("meinst train" + " --eval-only" * evaluate, wrong, make)


def show(wrong: str, write: Write) -> Case:
    def make(folder: Path) -> Call:
        write(folder / "w.pth")
        (folder / "a.png").touch()
        return show_with(folder, folder / "a.png", weights=folder / "w.pth")

    return Case("meinst predict", wrong, make)


def publish(wrong: str, write: Write | None, error: type[Exception] = ValueError) -> Case:
    def make(folder: Path) -> Call:
        (folder / "config.yaml").write_text(tiny_cfg().dump())
        if write is not None:
            write(folder / "model_final.pth")
        return lambda: publish_run(folder, folder / "out", "tiny")

    return Case("meinst publish", wrong, make, error)


def take_over(wrong: str, write: Write) -> Case:
    def make(folder: Path) -> Call:
        config = write_published_config(folder, "MEInst_R_50_1x.yaml")
        write(folder / "w.pth")
        return lambda: import_checkpoint(config, folder / "w.pth", folder / "out")

    return Case("meinst import", wrong, make, ValueError)


def resume(folder: Path) -> Call:
    (folder / "out").mkdir()
    (folder / "out/last_checkpoint").write_text("model_0000999.pth")
    return train_with(folder, flags=("--resume",))


CASES = [
    train("not there", lambda path: None),
    Case("meinst train --resume", "last_checkpoint names a file that is gone", resume),
    train("cut off", saving(lambda: {"model": state()}, cut=5000)),
    train("empty", Path.touch),
    train("a web page under the name of weights", lambda path: path.write_text("<html>Not found</html>")),
    train("a .pth that would run code", dangerous),
    train("a .pth of torch before 1.6 that would run code", lambda path: dangerous(path, zipped=False)),
    train("a .pkl that would run code", dangerous, "w.pkl"),
    train(
        "something else under the name of a .safetensors", lambda path: path.write_bytes(b"weights"), "w.safetensors"
    ),
    train("a list", saving(lambda: [1, 2])),
    train("weights whose names are numbers", saving(lambda: {"model": {1: torch.zeros(1)}})),
    train("a string where a tensor belongs", saving(lambda: {"model": state(CLASSES="bias")})),
    train("averaged weights that are not weights", saving(lambda: {"model": state(), "ema": {"decay": 0.9}})),
    train("components of another shape", saving(lambda: {"model": state(COMPONENTS=torch.ones(3))})),
    train("components of NaN", saving(lambda: {"model": state(COMPONENTS=torch.full((8, 784), torch.nan))})),
    train("another number of classes", saving(lambda: {"model": state("MODEL.MEINST.NUM_CLASSES", 3)}), evaluate=True),
    train(
        "weights of a backbone alone",
        saving(lambda: {"model": {"backbone.conv.weight": torch.zeros(1)}}),
        evaluate=True,
    ),
    show("weights of a backbone alone", saving(lambda: {"model": {"backbone.conv.weight": torch.zeros(1)}})),
    show("another architecture", saving(lambda: {"model": state("MODEL.MEINST.NUM_CLS_CONVS", 2)})),
    publish("a run without a checkpoint", None, FileNotFoundError),
    publish("a checkpoint that would run code", dangerous),
    publish("weights of another config", saving(lambda: {"model": state("MODEL.MEINST.NUM_CLASSES", 3)})),
    take_over("weights without components", saving(lambda: {"a": torch.zeros(1)})),
    take_over("a .pth that would run code", dangerous),
]
