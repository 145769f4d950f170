#!/usr/bin/env python
"""Checkpoints; the first byte chooses: .pth, .pkl, .safetensors, or the pickle of a .pth whose archive is right."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.harness import fuzz, watch, with_file

SUFFIXES = (".pth", ".pkl", ".safetensors")


def instrument() -> None:
    """Import what is fuzzed, watched by the fuzzer."""
    import pickle

    import atheris

    with atheris.instrument_imports(include=["meinst_d2"]):
        import meinst_d2.checkpoint.readers  # noqa: F401
    watch(vars(pickle), vars(zipfile))


def read(path: str) -> None:
    """Read the file, and do with its tensors what loading does: look at all of them."""
    from meinst_d2.checkpoint.readers import read_checkpoint

    for tensor in read_checkpoint(path)["model"].values():
        tensor.clone()


def around(pickle: bytes) -> bytes:
    """An archive as torch.save writes them, with this pickle and one storage of 16 bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")
    return file.getvalue()


def make_one_input() -> Callable[[bytes], None]:
    readers = [with_file(suffix, read) for suffix in SUFFIXES]

    def one_input(data: bytes) -> None:
        if not data:
            return
        choice = data[0] % (len(readers) + 1)
        if choice < len(readers):
            readers[choice](data[1:])
        else:
            readers[0](around(data[1:]))

    return one_input


if __name__ == "__main__":
    instrument()
    fuzz("checkpoint", make_one_input())
