"""No file that this project reads runs code, whichever command reads it."""

import json
import pickle
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meinst_d2 import model_zoo
from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.commands import check as check_command
from meinst_d2.commands import predict as predict_command
from meinst_d2.commands import swap_boxes as swap_boxes_command
from meinst_d2.commands import train as train_command
from meinst_d2.config_file import read_plain_yaml
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.instances import make_templates
from meinst_d2.encoding import load_components
from meinst_d2.model_zoo import load_trained
from meinst_d2.model_zoo.adelaidet import import_checkpoint
from meinst_d2.model_zoo.publish import publish_run
from tests.conftest import ROOT
from tests.models import tiny_cfg, tiny_model, write_components
from tests.published_configs import write_published_config
from tests.web import serve

TINY = str(ROOT / "configs/quick/tiny.yaml")
MARKER = "marker"


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def canary_checkpoint(path: Path, *, zipped: bool = True) -> Path:
    """A file of weights of the kind that its suffix says."""
    canary = Canary(path.parent / MARKER)
    content = {"model": {"a": canary}, "model_state": canary, "__author__": "me"}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def canary_components(path: Path) -> Path:
    arrays = dict(np.load(write_components(path)))
    np.savez(path, **(arrays | {"mean_c": np.array([Canary(path.parent / MARKER)], object)}))
    return path


def canary_yaml(path: Path) -> Path:
    path.write_text(f"MODEL:\n  WEIGHTS: !!python/object/apply:os.mkdir [{path.parent / MARKER}]\n")
    return path


CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda folder: canary_checkpoint(folder / "w.pth"),
    "legacy": lambda folder: canary_checkpoint(folder / "w.pth", zipped=False),
    "pkl": lambda folder: canary_checkpoint(folder / "w.pkl"),
    "pyth": lambda folder: canary_checkpoint(folder / "w.pyth"),
    "without a suffix": lambda folder: canary_checkpoint(folder / "weights"),
}
NAMES = ("w.pth", "w.pyth", "w.pkl", "w", "w.bin", "w.PKL", "w.pt", "w.safetensors", "dla34.pth")


def unsafe(path: Path) -> object:
    return pickle.loads(path.read_bytes()) if path.suffix == ".pkl" else torch.load(path, weights_only=False)


ALIVE: list[tuple[Callable[[Path], Path], Callable[[Path], object]]] = [
    *((make, unsafe) for make in CHECKPOINTS.values()),
    (lambda folder: canary_components(folder / "c.npz"), lambda path: np.load(path, allow_pickle=True)["mean_c"]),
    (lambda folder: canary_yaml(folder / "c.yaml"), lambda path: tiny_cfg().merge_from_file(str(path))),
]


@pytest.mark.parametrize(("make", "read"), ALIVE)
def test_every_canary_is_alive(tmp_path: Path, make: Callable[[Path], Path], read: Callable[[Path], object]) -> None:
    path = make(tmp_path)
    assert not (tmp_path / MARKER).exists()
    with suppress(TypeError, ValueError, AttributeError, KeyError, AssertionError):  # what comes out is no config
        read(path)
    assert (tmp_path / MARKER).exists()


def train(*overrides: object, config: object = TINY, flags: tuple[str, ...] = ()) -> None:
    train_command.main(["--config-file", str(config), *flags, *map(str, overrides)])


def show(folder: Path, *arguments: object) -> None:
    (folder / "a.png").touch()
    predict_command.main([*map(str, arguments), "--input", str(folder / "a.png"), "--output", str(folder / "out")])


def publish(weights: Path) -> None:
    """The file as the last checkpoint of a run."""
    (weights.parent / "config.yaml").write_text(tiny_cfg().dump())
    (weights.parent / "last_checkpoint").write_text(weights.name)
    publish_run(weights.parent, weights.parent / "out", "tiny")


def resume_check(weights: Path) -> None:
    (weights.parent / "last_checkpoint").write_text(weights.name)
    train("OUTPUT_DIR", weights.parent, flags=("--resume",))


def resume_load(weights: Path) -> None:
    (weights.parent / "last_checkpoint").write_text(weights.name)
    MEInstCheckpointer(tiny_model(), str(weights.parent)).resume_or_load("", resume=True)


def from_the_web(weights: Path) -> None:
    with serve(weights.parent) as url:
        MEInstCheckpointer(torch.nn.Linear(1, 1)).load(f"{url}/{weights.name}")


READERS_OF_WEIGHTS: dict[str, Callable[[Path], Any]] = {
    "read_checkpoint": read_checkpoint,
    "MEInstCheckpointer": lambda path: MEInstCheckpointer(tiny_model()).load(str(path)),
    "a URL": from_the_web,
    "last_checkpoint, before the start": resume_check,
    "last_checkpoint": resume_load,
    "meinst train": lambda path: train("MODEL.WEIGHTS", path),
    "meinst train --eval-only": lambda path: train("MODEL.WEIGHTS", path, flags=("--eval-only",)),
    "load_trained": lambda path: load_trained(TINY, str(path)),
    "model_zoo.get": lambda path: model_zoo.get(path if path.suffix else path.rename(path.with_suffix(".pth"))),
    "model_zoo.get_info": model_zoo.get_info,
    "meinst predict": lambda path: show(path.parent, "--config-file", TINY, "--weights", path),
    "meinst publish": publish,
    "meinst import": lambda path: import_checkpoint(
        write_published_config(path.parent, "MEInst_R_50_1x.yaml"), path, path.parent / "out"
    ),
}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize("reader", READERS_OF_WEIGHTS)
def test_weights_run_no_code(tmp_path: Path, kind: str, reader: str) -> None:
    path = CHECKPOINTS[kind](tmp_path)
    refused = "is refused: weights must be tensors, arrays and plain containers"
    with pytest.raises((ValueError, SystemExit), match=refused):
        READERS_OF_WEIGHTS[reader](path)
    assert not (tmp_path / MARKER).exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_no_name_makes_weights_run_code(tmp_path: Path, name: str, zipped: bool) -> None:
    path = canary_checkpoint(tmp_path / name, zipped=zipped)
    for query in ("", "?matching_heuristics=True"):
        with pytest.raises(ValueError, match=f"{name} is refused: weights must be tensors, arrays and plain"):
            MEInstCheckpointer(torch.nn.Linear(1, 1)).load(str(path) + query)
    assert not (tmp_path / MARKER).exists()


READERS_OF_COMPONENTS: dict[str, Callable[[Path], Any]] = {
    "load_components": load_components,
    "meinst train": lambda path: train("MODEL.MEINST.COMPONENTS", path),
    "building the model": lambda path: tiny_model("MODEL.MEINST.COMPONENTS", str(path)),
    "meinst check": lambda path: check_command.check(
        check_command.parse_args([str(path.parent / "a.json"), "--components", str(path)])
    ),
}


@pytest.mark.parametrize("reader", READERS_OF_COMPONENTS)
def test_components_run_no_code(tmp_path: Path, reader: str) -> None:
    path = canary_components(tmp_path / "c.npz")
    with pytest.raises((ValueError, SystemExit), match="mean_c holds Python objects, which could run code"):
        READERS_OF_COMPONENTS[reader](path)
    assert not (tmp_path / MARKER).exists()


def publish_config(config: Path) -> None:
    config.rename(config.parent / "config.yaml")
    publish_run(config.parent, config.parent / "out", "tiny")


def beside_weights(config: Path) -> None:
    config.rename(config.parent / "config.yaml")
    torch.save({"model": tiny_model().state_dict()}, config.parent / "w.pth")
    load_trained(None, str(config.parent / "w.pth"))


def within_weights(config: Path) -> None:
    about = {"config": config.read_text()}
    torch.save({"model": tiny_model().state_dict(), "meinst": about}, config.parent / "w.pth")
    load_trained(None, str(config.parent / "w.pth"))


READERS_OF_CONFIGS: dict[str, Callable[[Path], Any]] = {
    "meinst train": lambda path: train(config=path),
    "meinst train, in every process": lambda path: train_command.train(
        Namespace(config_file=str(path), coco_dataset=[], opts=[])
    ),
    "meinst predict": lambda path: show(path.parent, "--config-file", path, "--weights", path.parent / "absent.pth"),
    "meinst predict, naming no weights": lambda path: show(path.parent, "--config-file", path),
    "read_plain_yaml": read_plain_yaml,
    "meinst import": lambda path: import_checkpoint(path, "absent.pth", path.parent / "out"),
    "meinst check": lambda path: check_command.load_config(str(path)),
    "meinst swap-boxes": lambda path: swap_boxes_command.load_config(str(path), ()),
    "meinst publish": publish_config,
    "beside weights": beside_weights,
}
WITHOUT_BASE = "meinst publish"
"""The config of a run is whole."""


@pytest.mark.parametrize(
    ("reader", "base"),
    [(reader, base) for reader in READERS_OF_CONFIGS for base in (False, True) if reader != WITHOUT_BASE or not base],
)
def test_configs_run_no_code(tmp_path: Path, reader: str, base: bool) -> None:
    path = canary_yaml(tmp_path / "c.yaml")
    if base:
        path = tmp_path / "above.yaml"
        path.write_text("_BASE_: c.yaml")
    if reader == "meinst predict":
        torch.save({"model": tiny_model().state_dict()}, tmp_path / "absent.pth")
    with pytest.raises((ValueError, SystemExit), match=r"it holds Python objects \(python/object/apply:os.mkdir\)"):
        READERS_OF_CONFIGS[reader](path)
    assert not (tmp_path / MARKER).exists()


def test_a_config_within_weights_runs_no_code(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the config in .*w.pth is refused: it holds Python objects"):
        within_weights(canary_yaml(tmp_path / "c.yaml"))
    assert not (tmp_path / MARKER).exists()


def test_annotations_that_look_like_pickles_stay_texts(tmp_path: Path) -> None:
    text = pickle.dumps(Canary(tmp_path / MARKER), 0).decode("latin1")
    segmentations = [text, {"size": [9, 9], "counts": text}, [[text]], {"__reduce__": text}, [text]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "segmentation": segmentation}
        for i, segmentation in enumerate(segmentations)
    ]
    content = {"images": [{"id": 1, "height": 9, "width": 9}], "annotations": annotations, "categories": [{"id": 1}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    table = read_coco_json(tmp_path / "a.json")
    assert [annotation.segmentation for annotation in table] == segmentations
    assert make_templates(table, 28).skipped.total() == len(segmentations)
    assert not (tmp_path / MARKER).exists()
