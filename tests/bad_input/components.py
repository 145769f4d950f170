"""Components files (.npz)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from meinst_d2.encoding import load_components
from tests.bad_input.case import Call, Case, train_with
from tests.models import write_components

Arrays = dict[str, Any]
SETTING = "MODEL.MEINST.COMPONENTS"


def spoiled(folder: Path, change: Callable[[Arrays], object]) -> Path:
    path = write_components(folder / "c.npz", sigmoid=True, whiten=True)
    arrays = dict(np.load(path))
    change(arrays)
    np.savez(path, **arrays)
    return path


def load(wrong: str, change: Callable[[Arrays], object]) -> Case:
    def make(folder: Path) -> Call:
        path = spoiled(folder, change)
        return lambda: load_components(path)

    return Case("load_components", wrong, make, ValueError)


def raw(wrong: str, content: Callable[[bytes], bytes]) -> Case:
    def make(folder: Path) -> Call:
        path = write_components(folder / "c.npz")
        path.write_bytes(content(path.read_bytes()))
        return lambda: load_components(path)

    return Case("load_components", wrong, make, ValueError)


def train(wrong: str, *overrides: object, **basis: Any) -> Case:
    def make(folder: Path) -> Call:
        path = write_components(folder / "c.npz", **{"sigmoid": True, "whiten": True, **basis})
        return train_with(folder, SETTING, path, *overrides)

    return Case("meinst train", wrong, make)


def spoil_one(name: str, index: Any, value: float) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[name].__setitem__(index, value)


CASES = [
    Case("load_components", "not there", lambda folder: lambda: load_components(folder / "c.npz"), FileNotFoundError),
    raw("cut off", lambda content: content[:-500]),
    raw("not an archive", lambda _: b"components"),
    raw("a byte changed", lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]),
    load("an array is missing", lambda arrays: arrays.pop("mean_c")),
    load("an array has another name", lambda arrays: arrays.update(mean=arrays.pop("mean_c"))),
    load("an array has another shape", lambda arrays: arrays.update(mean_c=arrays["mean_c"][:, :-1])),
    load(
        "templates that are not squares", lambda arrays: arrays.update(components_c=arrays["components_c"][:, :, :60])
    ),
    load("whole numbers", lambda arrays: arrays.update(mean_c=np.zeros((1, 784), np.int64))),
    load("NaN", spoil_one("components_c", (0, 0, 0), np.nan)),
    load("rows that are not orthonormal", lambda arrays: arrays.update(components_c=arrays["components_c"] * 2)),
    load("a variance of zero", spoil_one("explained_variance_c", (0, 2), 0)),
    load("Python objects", lambda arrays: arrays.update(mean_c=np.array([{}], object))),
    train("another D than the config's", dim=6),
    train("another S than the config's", mask_size=14),
    train("of pixels, where the config has logits", sigmoid=False),
    train("one dictionary, where the config has one per class", "MODEL.MEINST.ENCODER", "ClassPCAEncoder"),
]
