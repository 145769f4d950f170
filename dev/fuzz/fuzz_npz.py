#!/usr/bin/env python
"""Files of components; the first byte chooses: the file itself, or one array in an archive whose others are right."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.harness import fuzz, watch, with_file


def instrument() -> None:
    """Import what is fuzzed, watched by the fuzzer."""
    import atheris
    import numpy as np  # too large to watch

    with atheris.instrument_imports(include=["meinst_d2"]):
        import meinst_d2.encoding.components  # noqa: F401
    watch(vars(zipfile), np.lib.format.read_array.__globals__)


def read(path: str) -> None:
    from meinst_d2.encoding.components import load_components

    load_components(path)


def around(array: bytes) -> bytes:
    """An archive with ``components_c`` of these bytes, made for one class, D = 1 and S = 2."""
    import numpy as np

    file = io.BytesIO()
    arrays = {"mean_c": (1, 4), "explained_variance_c": (1, 1), "ratio_c": (1, 1)}
    np.savez(file, **{name: np.ones(shape, np.float32) for name, shape in arrays.items()})
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("components_c.npy", array)
    return file.getvalue()


def make_one_input() -> Callable[[bytes], None]:
    load = with_file(".npz", read)

    def one_input(data: bytes) -> None:
        if data:
            load(around(data[1:]) if data[0] % 2 else data[1:])

    return one_input


if __name__ == "__main__":
    instrument()
    fuzz("npz", make_one_input())
