"""Pickles of numpy arrays and plain containers, read without calling anything that a pickle asks for."""

from __future__ import annotations

import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any, NoReturn

import numpy as np

BROKEN = (
    *(pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, EOFError),
    *(ImportError, LookupError),
    *(MemoryError, RecursionError, TypeError, ValueError),
)
"""What an unpickler raises on a file that is cut off or never was a pickle."""

PLAIN_TYPE = re.compile(r"[biufcSU][1-9][0-9]{0,3}")
"""Numbers and texts as pickles name their types. numpy understands more, for which it has a parser of Python."""
LONGEST_ITEM = 4096
"""Bytes of one of them."""
BYTE_ORDERS = ("<", ">", "|", "=")


class _Bounded:
    """A file that is never asked for more than it has: Python makes room for all that is asked for."""

    def __init__(self, file: IO[bytes], length: int) -> None:
        self.file, self.length = file, length
        self.readline, self.tell = file.readline, file.tell

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.length))


def require_modest_pickle(file: IO[bytes], length: int) -> None:
    """Raise an error of ``BROKEN`` if C's unpickler would take much more memory than the pickle is long.

    Its memo is a list up to the largest number that is asked for, so a pickle of six bytes can make it one of 64 GB,
    and it makes room for a whole frame before it looks whether there is one.

    Args:
        file: at the start of the pickle; is left after its end.
        length: of the file in bytes.
    """
    for opcode, argument, _ in pickletools.genops(_Bounded(file, length)):  # type: ignore[arg-type]  # enough of a file
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) > length:
            raise pickle.UnpicklingError(f"it asks for a memo of {argument:,} entries")
        if opcode.name == "FRAME" and (argument or 0) > length:
            raise pickle.UnpicklingError(f"it claims a frame of {argument:,} bytes")


class Callee:
    """What a pickle gets for a name: it can be called, and not be changed by the pickle."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("it changes a function")


class ArrayUnpickler(pickle.Unpickler):
    """Makes numpy arrays of numbers and texts, and plain containers.

    What builds arrays is called the way pickles of arrays call it, or not at all: numpy's own would make arrays of any
    size, and believe a pickle that bytes are pointers to objects.
    """

    def find_class(self, module: str, name: str) -> Any:
        function = BUILDERS.get((module.replace("numpy._core", "numpy.core"), name))  # NumPy 2 renamed it
        if function is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return Callee(function)


def plain_arrays(content: Any, depth: int = 3, made: dict[tuple[int, int], Any] | None = None) -> Any:
    """The same with numpy's own arrays, in dictionaries up to a depth.

    Args:
        content: of a pickle.
        depth: of dictionaries.
        made: what was made already, by identity and depth: a small pickle can hold a dictionary a million times.
    """
    made = {} if made is None else made
    if isinstance(content, dict) and depth:
        key = id(content), depth
        if key not in made:
            made[key] = {name: plain_arrays(value, depth - 1, made) for name, value in content.items()}
        return made[key]
    return content.view(np.ndarray) if isinstance(content, _Array) else content


class _Array(np.ndarray):
    """An array that takes its shape and bytes from a pickle only where they belong together."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        _require_bytes(data, shape, dtype)
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), data))  # type: ignore[arg-type]  # its own layout


class _PlainType:
    """A numpy type under construction: pickles set the byte order of plain types and nothing else."""

    def __init__(self, text: Any, *_: Any) -> None:
        plain = isinstance(text, str) and PLAIN_TYPE.fullmatch(text)
        self.dtype = np.dtype(text if plain else "O")
        if not plain or self.dtype.itemsize > LONGEST_ITEM:
            raise pickle.UnpicklingError(f"it has an array of {str(text)[:40]!r}, which are no numbers")

    def __setstate__(self, state: Any) -> None:
        if state[1] not in BYTE_ORDERS or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it has an array of records")
        self.dtype = self.dtype.newbyteorder(state[1])


def _reconstruct(_kind: Any, shape: Any, _code: Any) -> _Array:
    if shape != (0,):
        raise pickle.UnpicklingError("it makes an array in an unknown way")
    array: _Array = _Array(0, np.int8)
    return array


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    _require_bytes(data, shape, dtype)
    array: np.ndarray[Any, Any] = np.frombuffer(data, dtype.dtype)
    shaped: np.ndarray[Any, Any] = array.reshape(shape, order="F" if order == "F" else "C")
    return shaped


def _scalar(dtype: Any, data: Any) -> Any:
    _require_bytes(data, (1,), dtype)
    return np.frombuffer(data.encode("latin1") if isinstance(data, str) else data, dtype.dtype)[0]


def _require_bytes(data: Any, shape: Any, dtype: Any) -> None:
    """Raise an UnpicklingError unless the bytes are those of an array of this shape and type."""
    plain = isinstance(dtype, _PlainType) and isinstance(data, (bytes, bytearray, str)) and isinstance(shape, tuple)
    if not plain or any(type(side) is not int or side < 0 for side in shape):
        raise pickle.UnpicklingError("it makes an array in an unknown way")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):  # Python's integers do not wrap around
        raise pickle.UnpicklingError(f"it has an array of shape {shape} in {len(data):,} bytes")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes as {encoding!r}")
    return text.encode("latin1")


def _no_bytes(*parts: Any) -> bytes:
    """What protocols before 3 call for bytes of length zero."""
    if parts:
        raise pickle.UnpicklingError("it makes bytes in an unknown way")
    return b""


def _not_called(*_: Any) -> NoReturn:
    raise pickle.UnpicklingError("it calls numpy.ndarray")


BUILDERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("__builtin__", "bytes"): _no_bytes,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _not_called,
    ("numpy", "dtype"): _PlainType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
}
"""What pickles of numpy arrays and plain containers ask for."""
