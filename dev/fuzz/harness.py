"""What the fuzzers have in common: a reader, what it may raise, a folder of inputs."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path(__file__).parents[2] / "output/fuzz"
"""Where new inputs and findings go."""
SECONDS = 10
"""That an input may take."""
MEMORY = 3 * 2**30
"""Bytes that a reader may map; a small file that makes it ask for more is a finding, whatever is raised then."""

NO_MEMORY = "can't allocate memory"
"""What torch says then."""


def with_file(suffix: str, read: Callable[[str], object]) -> Callable[[bytes], None]:
    """A function that writes its bytes to a file and reads that.

    Args:
        suffix: of the file.
        read: may raise a ValueError whose sentence names the file, and nothing else.
    """
    folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)

    def one_input(data: bytes) -> None:
        path = os.path.join(folder.name, f"input{suffix}")
        with open(path, "wb") as file:
            file.write(data)
        try:
            read(path)
        except ValueError as error:
            if type(error) is not ValueError or path not in str(error):
                raise AssertionError(f"the error names no file: {error!r}") from error
            if any(isinstance(cause, MemoryError) or NO_MEMORY in str(cause) for cause in _causes(error)):
                raise AssertionError("it is refused because memory ran out") from error

    return one_input


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def little_memory() -> Iterator[None]:
    """Let the process map ``MEMORY`` more than it has, and no more."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def watch(*namespaces: Mapping[str, Any]) -> None:
    """Have the fuzzer see the branches of modules that were imported before it could.

    Args:
        namespaces: of the modules; what they import from others is not watched.
    """
    import atheris

    for namespace in namespaces:
        for function in set(_functions(namespace)):
            if function.__globals__ is namespace:
                atheris.instrument_func(function)


def _functions(namespace: Mapping[str, Any]) -> Iterator[types.FunctionType]:
    """Functions and methods, with those of classes in classes."""
    for value in list(namespace.values()):
        value = getattr(value, "__func__", value)  # of a class method
        if isinstance(value, types.FunctionType):
            yield value
        elif isinstance(value, type) and value.__module__ == namespace.get("__name__", namespace.get("__module__")):
            yield from _functions(vars(value))


def fuzz(name: str, one_input: Callable[[bytes], None]) -> None:
    """Run until something else than a documented error comes, or libFuzzer's options say so.

    Args:
        name: of the folder of inputs that it starts from.
        one_input: the harness.
    """
    import atheris

    if sys.argv[1:2] == ["--help"]:
        sys.exit(
            f"dev/fuzz/fuzz_{name}.py [FOLDER FOR NEW INPUTS] [FILE TO REPLAY] [-max_total_time=600] [-max_len=4096]"
        )
    options = [f"-artifact_prefix={FOUND}/{name}-", f"-timeout={SECONDS}", "-print_final_stats=1"]
    if name in ("json", "rle"):
        options.append(f"-dict={CORPUS.parent / 'json.dict'}")
    options += [argument for argument in sys.argv[1:] if argument.startswith("-")]
    paths = [argument for argument in sys.argv[1:] if not argument.startswith("-")] or [str(FOUND / name)]
    if not os.path.isfile(paths[0]):
        os.makedirs(paths[0], exist_ok=True)
        paths.append(str(CORPUS / name))
    FOUND.mkdir(parents=True, exist_ok=True)

    def with_traceback(data: bytes) -> None:
        try:
            one_input(data)
        except BaseException:
            traceback.print_exc()  # with the causes, which atheris leaves out
            raise

    atheris.Setup([sys.argv[0], *options, *paths], with_traceback)
    with little_memory():
        atheris.Fuzz()
