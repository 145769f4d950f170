"""A malformed input, and what reading it has to say."""

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from meinst_d2.commands import check as check_command
from meinst_d2.data.datasets import register_shapes
from meinst_d2.data.shapes import ShapesConfig, generate
from tests.conftest import ROOT
from tests.models import tiny_model, write_components

TINY = str(ROOT / "configs/quick/tiny.yaml")
SAID = ("skipped ", "meinst predict: ", "meinst check: ")
"""How lines of a command's output begin that tell the user what was wrong."""

HASH = re.compile(r"-[0-9a-f]{8}\.pth")
"""In names of published files."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        reader: what the user calls.
        wrong: with the input.
        make: writes the files into a folder; what it returns calls the reader, and asserts what ``instead`` says where
            nothing is raised.
        error: what is raised; SystemExit by commands.
        instead: what happens where ``error`` is None. Elsewhere the user gets the sentences that docs/bad-input.md has,
            with the folder of the files taken out.
    """

    reader: str
    wrong: str
    make: Callable[[Path], Call]
    error: type[BaseException] | None = SystemExit
    instead: str = ""

    def __str__(self) -> str:
        return f"{self.reader}: {self.wrong}"


def call_of(case: Case, folder: Path) -> tuple[type[BaseException] | None, str, list[str], list[str]]:
    """What is raised, what is said, and what is in the folder before and after."""
    printed, raised, sentences = io.StringIO(), None, []
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), datasets_as_they_were():
        call = case.make(folder)
        before = listing(folder)
        try:
            call()
        except BaseException as error:
            raised = type(error)
            if not (isinstance(error, SystemExit) and isinstance(error.code, int)):
                sentences.append(str(error))
    lines = [line for line in printed.getvalue().splitlines() if line.startswith(SAID)]
    said = "\n".join([*lines, *sentences]).replace(f"{folder}/", "").replace(str(folder), ".")
    return raised, HASH.sub("-SHA256.pth", said), before, listing(folder)


@contextlib.contextmanager
def datasets_as_they_were() -> Iterator[None]:
    """What the block registers is forgotten."""
    known, root = set(DatasetCatalog.list()), Path(MetadataCatalog.get("shapes_train").json_file).parents[1]
    try:
        yield
    finally:
        register_shapes(root)
        for name in set(DatasetCatalog.list()) - known:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def listing(folder: Path) -> list[str]:
    """Every folder below, and every file with its length and when it was written."""
    found = [(path, path.lstat()) for path in sorted(folder.rglob("*"))]
    return [str(path) if path.is_dir() else f"{path} {about.st_size} {about.st_mtime_ns}" for path, about in found]


def fit_pca_with(json_file: Path, *arguments: object) -> Call:
    """Fitting two components to templates of 8 x 8."""
    from meinst_d2.commands import fit as fit_command

    output = json_file.parent / "components.npz"
    options = ("--dim", 2, "--mask-size", 8, "--workers", 1, "--output", output, *arguments)
    return lambda: fit_command.main(["--coco-json", str(json_file), *map(str, options)])


def train_with(folder: Path, *overrides: object, config: object = TINY, flags: Sequence[object] = ()) -> Call:
    """meinst train on generated shapes, with everything right but the overrides, which count last."""
    from meinst_d2.commands import train as train_command

    write_components(folder / "right.npz", sigmoid=True, whiten=True)
    generate(folder / "shapes", {"train": 1, "val": 1}, ShapesConfig(height=96, width=96, max_side=60))
    register_shapes(folder / "shapes")
    right = ("OUTPUT_DIR", folder / "out", "MODEL.MEINST.COMPONENTS", folder / "right.npz")
    arguments = [str(x) for x in ("--config-file", config, *flags, *right, *overrides)]
    return lambda: train_command.main(arguments)


def check_dataset_with(*arguments: object) -> Call:
    return lambda: check_command.main([*map(str, arguments), "--workers", "1", "--no-encodings"])


def show_with(folder: Path, *inputs: object, weights: object = None, flags: Sequence[object] = ()) -> Call:
    """meinst predict with the tiny model, or other weights for it."""
    from meinst_d2.commands import predict as predict_command

    if weights is None:
        weights = folder / "right.pth"
        torch.save({"model": tiny_model().state_dict()}, weights)
    arguments = ("--config-file", TINY, "--weights", weights, "--output", folder / "out", *flags, "--input", *inputs)
    return lambda: predict_command.main([*map(str, arguments)])


def coco_content() -> dict[str, Any]:
    """Eight triangles in an image of 40 x 60."""
    rng = np.random.default_rng(0)
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 30, 30], "area": 400, "iscrowd": 0}
        | {"segmentation": [rng.uniform(1, 31, 8).round(2).tolist()]}
        for i in range(1, 9)
    ]
    image = {"id": 1, "height": 40, "width": 60, "file_name": "a.png"}
    return {"images": [image], "categories": [{"id": 1, "name": "thing"}], "annotations": annotations}
