"""What the fuzzers have in common: a reader, what it may raise, a folder of inputs."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MEMORY = 3 * 2**30
"""Bytes that the process may map more than when it starts; more is a MemoryError, which no reader documents."""


def with_file(suffix: str, read: Callable[[str], object]) -> Callable[[bytes], None]:
    """A function that writes its bytes to a file and reads that.

    Args:
        suffix: of the file.
        read: may raise a ValueError whose sentence names the file, and nothing else.
    """
    folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    path = os.path.join(folder, f"input{suffix}")

    def one_input(data: bytes) -> None:
        with open(path, "wb") as file:
            file.write(data)
        try:
            read(path)
        except ValueError as error:
            if type(error) is not ValueError or path not in str(error):
                raise AssertionError(f"the error names no file: {error!r}") from error

    return one_input


def fuzz(name: str, one_input: Callable[[bytes], None]) -> None:
    """Run until something else than a documented error comes, or libFuzzer's options say so.

    Args:
        name: of the folder of inputs that it starts from.
        one_input: the harness.
    """
    import atheris

    if sys.argv[1:2] == ["--help"]:
        sys.exit(f"fuzz/fuzz_{name}.py [FOLDER FOR NEW INPUTS] [FILE TO REPLAY] [-max_total_time=600] [-max_len=4096]")
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, resource.RLIM_INFINITY))
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    if name in ("json", "rle"):
        options.append(f"-dict={CORPUS.parent / 'json.dict'}")
    corpus = [] if any(os.path.isfile(folder) for folder in folders) else [str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *options, *folders, *corpus], one_input)
    atheris.Fuzz()
