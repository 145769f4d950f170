"""Components files (.npz)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from meinst_d2.encoding import load_components
from tests.bad_input.case import Call, Case, train_with
from tests.models import write_components

Arrays = dict[str, Any]
NO_COMPONENTS = "c.npz holds no usable components: "
REMEDY = ". Make them again with meinst fit"
SETTING = "MODEL.MEINST.COMPONENTS"


def spoiled(folder: Path, change: Callable[[Arrays], object]) -> Path:
    path = write_components(folder / "c.npz", sigmoid=True, whiten=True)
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)
    return path


def load(wrong: str, change: Callable[[Arrays], object], gets: str) -> Case:
    def make(folder: Path) -> Call:
        path = spoiled(folder, change)
        return lambda: load_components(path)

    return Case("load_components", wrong, gets, make, ValueError)


def raw(wrong: str, content: Callable[[bytes], bytes], gets: str) -> Case:
    def make(folder: Path) -> Call:
        path = write_components(folder / "c.npz")
        path.write_bytes(content(path.read_bytes()))
        return lambda: load_components(path)

    return Case("load_components", wrong, gets, make, ValueError)


def train(wrong: str, gets: str, *overrides: object, **basis: Any) -> Case:
    def make(folder: Path) -> Call:
        path = write_components(folder / "c.npz", **{"sigmoid": True, "whiten": True, **basis})
        return train_with(folder, SETTING, path, *overrides)

    return Case("meinst train", wrong, gets, make)


def spoil_one(name: str, index: Any, value: float) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[name].__setitem__(index, value)


CASES = [
    Case(
        "load_components",
        "not there",
        "there are no components at c.npz: make them with meinst fit --output c.npz",
        lambda folder: lambda: load_components(folder / "c.npz"),
        FileNotFoundError,
    ),
    raw("cut off", lambda content: content[:-500], f"{NO_COMPONENTS}File is not a zip file{REMEDY}"),
    raw("not an archive", lambda _: b"components", f"{NO_COMPONENTS}File is not a zip file{REMEDY}"),
    raw(
        "a byte changed",
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        f"{NO_COMPONENTS}Bad CRC-32 for file 'components_c.npy'{REMEDY}",
    ),
    load("an array is missing", lambda arrays: arrays.pop("mean_c"), f"{NO_COMPONENTS}it lacks mean_c{REMEDY}"),
    load(
        "an array has another name",
        lambda arrays: arrays.update(mean=arrays.pop("mean_c")),
        f"{NO_COMPONENTS}it lacks mean_c{REMEDY}",
    ),
    load(
        "an array has another shape",
        lambda arrays: arrays.update(mean_c=arrays["mean_c"][:, :-1]),
        f"{NO_COMPONENTS}mean_c has shape (1, 783) instead of (1, 784){REMEDY}",
    ),
    load(
        "templates that are not squares",
        lambda arrays: arrays.update(components_c=arrays["components_c"][:, :, :60]),
        f"{NO_COMPONENTS}components_c has rows of 60 pixels, which are not a square{REMEDY}",
    ),
    load(
        "whole numbers",
        lambda arrays: arrays.update(mean_c=np.zeros((1, 784), np.int64)),
        f"{NO_COMPONENTS}mean_c has dtype int64 instead of float32{REMEDY}",
    ),
    load(
        "NaN",
        spoil_one("components_c", (0, 0, 0), np.nan),
        f"{NO_COMPONENTS}components_c holds values that are not finite{REMEDY}",
    ),
    load(
        "rows that are not orthonormal",
        lambda arrays: arrays.update(components_c=arrays["components_c"] * 2),
        f"{NO_COMPONENTS}the rows of components_c are not orthonormal (off by 3){REMEDY}",
    ),
    load(
        "a variance of zero",
        spoil_one("explained_variance_c", (0, 2), 0),
        f"{NO_COMPONENTS}explained_variance_c holds 0, variances must be positive{REMEDY}",
    ),
    load(
        "Python objects",
        lambda arrays: arrays.update(mean_c=np.array([{}], object)),
        f"{NO_COMPONENTS}mean_c holds Python objects, which could run code{REMEDY}",
    ),
    train(
        "another D than the config's",
        "meinst train: the components in c.npz have D = 6, the config asks for MODEL.MEINST.DIM_MASK = 8: run "
        "meinst fit --dim 8, or set MODEL.MEINST.DIM_MASK 6",
        dim=6,
    ),
    train(
        "another S than the config's",
        "meinst train: the components in c.npz have S = 14, the config asks for MODEL.MEINST.MASK_SIZE = 28: run "
        "meinst fit --mask-size 28, or set MODEL.MEINST.MASK_SIZE 14",
        mask_size=14,
    ),
    train(
        "of pixels, where the config has logits",
        "meinst train: the components in c.npz have sigmoid = False, the config asks for MODEL.MEINST.SIGMOID = True: "
        "run meinst fit without --no-sigmoid, or set MODEL.MEINST.SIGMOID False",
        sigmoid=False,
    ),
    train(
        "one dictionary, where the config has one per class",
        "meinst train: c.npz holds 1 dictionary, MODEL.MEINST.ENCODER ClassPCAEncoder needs 6: run meinst fit "
        "--class-specific, or choose another encoder",
        "MODEL.MEINST.ENCODER",
        "ClassPCAEncoder",
    ),
]
