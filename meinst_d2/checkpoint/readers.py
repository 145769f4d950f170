"""Files of weights in every format, read without running code and without more memory than they are worth.

``torch.load(weights_only=True)`` makes whatever a pickle claims, and lets it work with that, before anything can be
checked. Here tensors stay empty until their pickle has ended, and then get the bytes that the file has for them.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import zipfile
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from meinst_d2.checkpoint.compatibility import weights_by_name

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch before 1.6, whose storages follow the last
MOST_COPIES, SLACK = 4, 2**30
"""Tensors may repeat what is in their storages: altogether so many times the file's bytes, and so many more."""
NAMES: dict[str, Any] = {f"torch.{name}": x for name, x in vars(torch).items() if isinstance(x, torch.dtype)}
NAMES |= {f"torch.{name}": dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()}
NAMES |= {"torch.storage.UntypedStorage": torch.uint8, "torch.device": torch.device, "torch.Size": lambda sides: sides}
NAMES |= {f"torch._utils._rebuild_parameter{suffix}": lambda data, *_: data for suffix in ("", "_with_state")}
NAMES |= {"collections.OrderedDict": OrderedDict, "collections.Counter": Counter, "builtins.complex": complex}
NAMES |= {"builtins.set": set, "builtins.bytes": lambda: b"", "numpy.ndarray": None}
NAMES["_codecs.encode"] = lambda x, _: x.encode("latin1")
NAMES["numpy.dtype"] = lambda x, *_: np.dtype(x if x[0] in "biufcSU" and int(x[1:]) else "O", False, True)
NAMES["numpy.core.multiarray._reconstruct"] = lambda *_: np.ndarray(0, np.int8)  # load_build fills it
NAMES["numpy.core.multiarray.scalar"] = lambda dtype, data: np.frombuffer(data, dtype)[0]
NAMES["numpy.core.numeric._frombuffer"] = lambda x, t, shape, order: np.frombuffer(x, t).reshape(shape, order=order)
"""What pickles of tensors, arrays and plain containers ask for, and what they get."""


class _Unpickler(pickle._Unpickler):  # that in C makes room for whatever a pickle claims
    def __init__(self, data: bytes) -> None:
        self.file = io.BytesIO(data)
        self.storages: dict[str, tuple[torch.dtype, int]] = {}
        self.tensors: list[tuple[Any, ...]] = []
        super().__init__(self.file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("__builtin__", "builtins").replace("numpy._core", "numpy.core")
        if full.startswith("torch._utils._rebuild_tensor"):
            return self._tensor
        if full not in NAMES:
            raise ValueError(f"it asks for {module}.{name}")
        return NAMES[full]

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, key, _, count = pid[:5]
        self.storages[key] = dtype, count * dtype.itemsize
        return key

    def _tensor(self, key: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> torch.Tensor:
        dtype = next((value for value in more if isinstance(value, torch.dtype)), self.storages[key][0])
        if not _are_lengths(shape, strides, (offset,)) or any(value for value in more[2:] if value is not dtype):
            raise ValueError("it makes a tensor in an unknown way")  # such as a conjugate
        self.tensors.append((torch.empty(0, dtype=dtype), key, offset, shape, strides))
        return self.tensors[-1][0]

    def load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, np.dtype) and made.kind != "O" and state[1] in ("<", ">", "=", "|"):  # the byte order only
            made.__setstate__((3, state[1], None, None, None, made.itemsize, made.alignment, 0))
        elif isinstance(made, np.ndarray) and made.size == 0:  # and once only: others may look into its memory
            _, shape, dtype, _, data = state
            if dtype.hasobject or not _are_lengths(shape) or math.prod(shape) * dtype.itemsize != len(data):
                raise ValueError(f"it has an array of {dtype} of shape {shape} in {len(data):,} bytes")
            made.__setstate__(state)
        elif not isinstance(made, OrderedDict):  # whose attributes nothing needs
            raise ValueError(f"it changes {made!r:.40}")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        if type(arguments) is not tuple:
            raise ValueError("it calls something in an unknown way")
        self.stack[-1] = self.stack[-1](*arguments)

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}
    dispatch |= dict.fromkeys((pickle.REDUCE[0], pickle.NEWOBJ[0], pickle.NEWOBJ_EX[0]), load_reduce)
    dispatch[pickle.BYTEARRAY8[0]] = lambda x: x.append(bytearray(x.read(int.from_bytes(x.read(8), "little"))))

    def read_all(self, parts: dict[str, bytearray], size: int) -> Any:
        """The content of a file of so many bytes, whose storages are parts of an archive or follow the pickles."""
        content = self.load()
        if type(content) is int and content == MAGIC_NUMBER:
            _, _, content, keys = (self.load() for _ in range(4))  # after the protocol and the sizes of types
            for key in keys:
                self.file.read(8)  # the number of elements
                parts[f"data/{key}"] = bytearray(self.file.read(self.storages[key][1]))
        storages = {key: torch.from_numpy(np.frombuffer(parts[f"data/{key}"], np.uint8)) for key in self.storages}
        claimed = sum(math.prod(shape) * tensor.element_size() for tensor, _, _, shape, _ in self.tensors)
        if claimed > MOST_COPIES * size + SLACK:
            raise ValueError(f"it claims tensors of {claimed:,} bytes")
        for tensor, key, *place in self.tensors:
            tensor.set_(storages[key].untyped_storage(), *place)
        return content


def _are_lengths(*groups: Any) -> bool:
    return all(type(x) is tuple and len(x) < 65 and all(type(n) is int and n >= 0 for n in x) for x in groups)


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read tensors, arrays and plain containers that torch.save, pickle or safetensors wrote.

    Returns:
        ``model``, the weights by name, and whatever else the file holds, on the CPU.

    Raises:
        OSError: there is no such file, or it cannot be read.
        ValueError: it is damaged, needs more, which could run code, or more memory than it is worth, or has no weights.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if os.path.splitext(path)[1] == ".safetensors":
                with safe_open(path, framework="pt") as opened:
                    content = {"model": {name: opened.get_tensor(name) for name in opened.keys()}}  # noqa: SIM118
                    about = opened.metadata() or {}
                content |= {"meinst": json.loads(about["meinst"])} if "meinst" in about else {}
            elif file.read(2) == b"PK":
                with zipfile.ZipFile(file) as archive:
                    members = archive.infolist()
                    if any(x.compress_type for x in members) or sum(x.file_size for x in members) > size:
                        raise ValueError("its parts are compressed or overlap")
                    parts = {x.filename.partition("/")[2]: bytearray(archive.read(x)) for x in members}
                if parts.get("byteorder", b"little") != b"little":
                    raise ValueError("its numbers are big-endian")
                content = _Unpickler(parts["data.pkl"]).read_all(parts, size)
            else:
                file.seek(0)
                content = _Unpickler(file.read()).read_all({}, size)
        except Exception as error:  # whatever damaged bytes lead to
            reason = "" if isinstance(error, (LookupError, EOFError)) else str(error).partition("\n")[0][:200]
            reason = reason or "it ends too early, or is something else"
            raise ValueError(
                f"{path} is refused: weights must be tensors, arrays and plain containers in a whole file ({reason})"
            ) from error
    return weights_by_name(content, path)
