"""Reading arrays from a .npz without running code and without more memory than the file is worth."""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Collection
from tokenize import TokenError
from typing import IO, Any

import numpy as np

LARGEST = 2**29
"""Bytes of one array: dictionaries of 28 x 28 pixels and 60 components for 2,800 classes."""
DENSEST = 200
"""Times that an array may be larger than in the file. Real components deflate to 90 %, bombs a thousandfold."""
LONGEST_HEADER = 10_000
BROKEN = (
    *(ValueError, OSError, EOFError, RuntimeError, SyntaxError, OverflowError, MemoryError, struct.error),
    *(TypeError, LookupError, AttributeError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, TokenError),
)
"""What zipfile, zlib and numpy raise on files that are cut off, encrypted or never were archives of arrays.

numpy sorts and indexes whatever a header turns out to be.
"""


class NpzFile:
    """An open .npz whose arrays can be asked for their shape before they are read.

    Other members than the wanted ones are not looked at.
    """

    def __init__(self, path: str | os.PathLike[str], wanted: Collection[str]) -> None:
        """
        Args:
            path: the file.
            wanted: names of arrays.

        Raises:
            ValueError: the file is no archive, its members overlap, or an array in it is an object array, or larger
                than it may be.
        """
        try:
            self._archive = zipfile.ZipFile(path)
        except BROKEN as error:
            raise ValueError(_first_line(error)) from error
        try:
            if sum(member.compress_size for member in self._archive.infolist()) > os.path.getsize(path):
                raise ValueError("its members overlap")  # and so might look less dense than they are
            self.headers = {name: self._header(name) for name in wanted if f"{name}.npy" in self._archive.namelist()}
        except BROKEN as error:
            self._archive.close()
            raise ValueError(_first_line(error)) from error

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """An array that ``headers`` has.

        Raises:
            ValueError: it is cut off or damaged.
        """
        try:
            with self._archive.open(f"{name}.npy") as file:
                array: np.ndarray[Any, Any] = np.lib.format.read_array(file, allow_pickle=False)
                file.read()  # to the end, where the checksum is looked at
                return array
        except BROKEN as error:
            raise ValueError(_first_line(error)) from error

    def _header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype of an array, whose bytes are as many as the archive says."""
        member = self._archive.getinfo(f"{name}.npy")
        if member.file_size > min(LARGEST, DENSEST * member.compress_size):
            raise ValueError(
                f"{name} would grow from {member.compress_size:,} to {member.file_size:,} bytes, "
                f"{min(LARGEST, DENSEST * member.compress_size):,} are the most"
            )
        with self._archive.open(member) as file:
            shape, dtype = _read_header(file)
            position = file.tell()
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which could run code")
        count = 1
        for side in shape:
            count *= side  # of any length: Python's integers do not wrap around
        if count * dtype.itemsize != member.file_size - position or min(shape, default=0) < 0:
            raise ValueError(f"{name} should be {shape} of {dtype}, but has {member.file_size - position:,} bytes")
        return shape, dtype


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=LONGEST_HEADER)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file, max_header_size=LONGEST_HEADER)
    else:
        raise ValueError(f"it has arrays of format {version[0]}.{version[1]}")
    return shape, dtype


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
