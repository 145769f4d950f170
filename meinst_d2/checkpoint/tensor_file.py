"""What a file of torch.save claims to hold, found out before torch makes any of it."""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from typing import IO, Any, NoReturn

from meinst_d2.checkpoint.array_pickle import Callee, require_modest_pickle

CALLED = {
    *(("collections", "OrderedDict"), ("collections", "Counter"), ("_codecs", "encode")),
    *(("builtins", "set"), ("__builtin__", "set"), ("builtins", "complex"), ("__builtin__", "complex")),
    *(("torch", "Size"), ("torch", "device"), ("torch.serialization", "_get_layout")),
    *(("torch._utils", "_rebuild_tensor"), ("torch._utils", "_rebuild_tensor_v2")),
    ("torch._utils", "_rebuild_tensor_v3"),
    *(("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")),
}
"""What pickles of tensors and plain containers call. torch allows more, some of which make tensors of any size."""

ITEM_SIZES = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4, "Half": 2}
ITEM_SIZES |= {"BFloat16": 2, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1}
"""Bytes of an element, by the first part of the name of torch's storages."""

DTYPE = re.compile(r"torch\.[a-z]+([0-9]+)[0-9a-z_]*")
"""torch's types that have no kind of storage have their bits in their names: uint16, float8_e5m2, complex32."""

MOST_COPIES = 4
SLACK = 2**30
"""Tensors may share a storage, or repeat what is in it: altogether so many times the file and so many bytes."""
ZIP = b"PK\x03\x04"
END, LOCATOR, NO_COMMENT = b"PK\x05\x06", b"PK\x06\x07", bytes(2)
END_BYTES, LOCATOR_BYTES, END64_BYTES = 22, 20, 56
"""Of what ends a zip file, in reverse order; the last two are there in files of torch.save."""
NUM_LEGACY_HEADERS = 3
"""Pickles before the content in files of torch before 1.6: magic number, protocol, sizes of types."""


def require_modest_file(path: str | os.PathLike[str]) -> None:
    """Raise if reading the file would take memory out of proportion to its size.

    Raises:
        UnpicklingError, ValueError, zipfile.BadZipFile: the sentence says why.
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
        if _is_tar(start):
            raise ValueError("it is a tar archive, which torch.save no longer writes")
        zipped = start.startswith(ZIP)
        file.seek(0)
        contents = _read_archive(file, size) if zipped else _read_legacy(file, size)
    _Claims(contents[1], size).read(contents[0])


def _is_tar(start: bytes) -> bool:
    """Whether torch would take a file for a tar archive, with which versions before 2.6 did not keep to weights.

    It may be a file of pickles just as well: a tar archive starts with a name, of any bytes.
    """
    try:
        tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _read_archive(file: IO[bytes], size: int) -> tuple[bytes, Mapping[str, int]]:
    """The pickle of a zip file, and the bytes of every storage."""
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        packed = next((member for member in members if member.compress_type != zipfile.ZIP_STORED), None)
        if packed is not None:
            raise ValueError(f"{packed.filename} is compressed, which torch.save does not do")
        if sum(member.file_size for member in members) > size or len({m.filename for m in members}) != len(members):
            raise ValueError("its parts overlap")
        _require_one_directory(archive, file, size)
        root = members[0].filename.partition("/")[0] if members else ""
        sizes = {member.filename.removeprefix(f"{root}/data/"): member.file_size for member in members}
        try:
            return archive.read(f"{root}/data.pkl"), sizes
        except KeyError as error:
            raise ValueError("it holds no pickle") from error


def _require_one_directory(archive: zipfile.ZipFile, file: IO[bytes], size: int) -> None:
    """Raise unless torch finds the list of parts where Python's zipfile does.

    Python looks for archives behind other content, and for the 64-bit end of the list right before the place that says
    where it is. torch believes what is written in either case.
    """
    if min((member.header_offset for member in archive.infolist()), default=0) > 0:
        raise ValueError("its parts do not start where the file does")
    file.seek(max(0, size - END_BYTES - LOCATOR_BYTES))
    tail = file.read()
    locator, end = tail[:-END_BYTES], tail[-END_BYTES:]
    end64 = struct.pack("<q", size - END_BYTES - LOCATOR_BYTES - END64_BYTES)
    elsewhere = locator.startswith(LOCATOR) and locator[8:16] != end64
    if elsewhere or not end.startswith(END) or not end.endswith(NO_COMMENT):
        raise ValueError("its list of parts is not at the end")


def _read_legacy(file: IO[bytes], size: int) -> tuple[bytes, None]:
    """The pickle of a file of torch before 1.6."""
    for _ in range(NUM_LEGACY_HEADERS):
        require_modest_pickle(file, size)
    start = file.tell()
    require_modest_pickle(file, size)
    length = file.tell() - start
    require_modest_pickle(file, size)  # the keys of the storages
    file.seek(start)
    return file.read(length), None


class _Claims(pickle.Unpickler):
    """Goes through a pickle with stand-ins for everything that it calls, adding up what torch would make."""

    def __init__(self, storages: Mapping[str, int] | None, file_size: int) -> None:
        self.storages, self.file_size = storages, file_size
        self.declared: dict[str, int] = {}
        self.tensor_bytes = 0

    def read(self, data: bytes) -> None:
        require_modest_pickle(io.BytesIO(data), len(data))
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.load()
        if sum(self.declared.values()) > self.file_size:
            raise pickle.UnpicklingError(
                f"it claims storages of {sum(self.declared.values()):,} bytes in a file of {self.file_size:,}"
            )

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch") and name.endswith("Storage"):
            return _Name(name.removesuffix("Storage"))
        if (module, name) not in CALLED:
            return _Name(f"{module}.{name}")
        if name == "_rebuild_tensor_v3":
            return Callee(self._tensor_of_bytes)
        if name.startswith("_rebuild_tensor"):
            return Callee(self._tensor)
        return Callee(_Tensor if name.startswith("_rebuild") else _Thing)

    def persistent_load(self, pid: Any) -> Any:
        kind, name, key, _, count = pid[:5]
        item = ITEM_SIZES.get(str(name), 1)
        if kind != "storage" or not isinstance(name, _Name) or not _lengths(count):
            raise pickle.UnpicklingError("it refers to something that is no storage")
        length = count * item
        if self.storages is not None and self.storages.get(str(key), -1) < length:
            raise pickle.UnpicklingError(f"its storage {key} claims {length:,} bytes and has fewer")
        self.declared[str(key)] = max(length, self.declared.get(str(key), 0))
        return _Storage(item, length)

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
        return self._claim(storage, offset, shape, strides, storage.item if isinstance(storage, _Storage) else 0)

    def _tensor_of_bytes(self, storage: Any, offset: Any, shape: Any, strides: Any, *more: Any) -> Any:
        """Of a type that has no kind of storage of its own: float8, or unsigned integers of 16 bits and more."""
        bits = DTYPE.fullmatch(str(more[2]))
        return self._claim(storage, offset, shape, strides, max(1, int(bits[1]) // 8) if bits else 0)

    def _claim(self, storage: Any, offset: Any, shape: Any, strides: Any, item: int) -> Any:
        sides: Any = shape if isinstance(shape, tuple) else getattr(shape, "args", (None,))[0]
        plain = (
            isinstance(storage, _Storage) and isinstance(sides, (tuple, list)) and isinstance(strides, (tuple, list))
        )
        if not plain or not item or not _lengths(offset, *sides, *strides) or len(sides) != len(strides):
            raise pickle.UnpicklingError("it makes a tensor in an unknown way")
        self.tensor_bytes += math.prod(sides) * item
        if self.tensor_bytes > MOST_COPIES * self.file_size + SLACK:
            raise pickle.UnpicklingError(f"it claims tensors of {self.tensor_bytes:,} bytes or more")
        last = offset + sum((side - 1) * stride for side, stride in zip(sides, strides, strict=True))
        if 0 not in sides and (last + 1) * item > storage.length:  # torch would make the storage larger
            raise pickle.UnpicklingError(
                f"it has a tensor that ends {(last + 1) * item:,} bytes into a storage of {storage.length:,}"
            )
        return _Tensor()


def _lengths(*numbers: Any) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


class _Name:
    """Stands for what may be named and not called, a type for one."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __call__(self, *_: Any) -> Any:
        raise pickle.UnpicklingError(f"it calls {self.text}")


class _Storage:
    def __init__(self, item: int, length: int) -> None:
        self.item, self.length = item, length


class _Tensor:
    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> NoReturn:
        raise pickle.UnpicklingError("it changes a tensor")  # torch would change its storage as well


class _Thing:
    """Stands for what torch would make: takes whatever it is given."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass
