"""Places that cannot be written to."""

import contextlib
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.model_zoo.publish import publish_run
from tests.bad_input.annotations import written
from tests.bad_input.case import Call, Case, check_dataset_with, coco_content, fit_pca_with, show_with, train_with
from tests.models import tiny_cfg, tiny_model

LIMIT = 1000
"""Bytes."""


@contextlib.contextmanager
def files_of_at_most(length: int) -> Iterator[None]:
    """Within the block, writing fails at this length, as it does on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def full(reader: str, wrong: str, make: Callable[[Path], Call], error: type[BaseException] = SystemExit) -> Case:
    def limited(folder: Path) -> Call:
        call = make(folder)

        def write() -> None:
            with files_of_at_most(LIMIT):
                call()

        return write

    return Case(reader, wrong, limited, error)


def fit(folder: Path) -> Call:
    """Over components that are there already."""
    (folder / "components.npz").write_text("before")
    return fit_pca_with(written(folder, coco_content()))


def save(folder: Path) -> Call:
    (folder / "model_final.pth").write_text("before")
    return lambda: MEInstCheckpointer(tiny_model(), str(folder)).save("model_final")


def publish(folder: Path) -> Call:
    (folder / "config.yaml").write_text(tiny_cfg().dump())
    torch.save({"model": tiny_model().state_dict()}, folder / "model_final.pth")
    (folder / "out").mkdir()
    return lambda: publish_run(folder, folder / "out", "tiny")


def fit_to(output: str, prepare: Callable[[Path], object] = Path.touch) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        prepare(folder / "there")
        return fit_pca_with(written(folder, coco_content()), "--output", folder / output)

    return make


def check_to(folder: Path) -> Call:
    return check_dataset_with(written(folder, coco_content()), "--json", folder)


def show_to(flag: str) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        (folder / "there").touch()
        (folder / "a.png").touch()
        return show_with(folder, folder / "a.png", flags=(flag, folder / "there/found.json"))

    return make


def train_to(output: str) -> Callable[[Path], Call]:
    def make(folder: Path) -> Call:
        (folder / "there").touch()
        return train_with(folder, "OUTPUT_DIR", folder / output)

    return make


CASES = [
    full("meinst fit", "the disk is full", fit),
    full("a checkpoint during training", "the disk is full", save, OSError),
    full("meinst publish", "the disk is full", publish, OSError),
    Case("meinst fit --output", "a file where a folder belongs", fit_to("there/c.npz")),
    Case("meinst fit --output", "a folder where a file belongs", fit_to("there", Path.mkdir)),
    Case("meinst fit --output", "a pipe or a device", fit_to("there", os.mkfifo)),
    Case("meinst fit --output", "a folder that takes no files", fit_to("/proc/c.npz")),
    Case("meinst train", "OUTPUT_DIR below a file", train_to("there/run")),
    Case("meinst train", "OUTPUT_DIR in a folder that takes no files", train_to("/proc/run")),
    Case("meinst predict --save-json", "a file where a folder belongs", show_to("--save-json")),
    Case("meinst check --json", "a folder where a file belongs", check_to),
]
