"""Which archives of arrays are read, and which are refused before anything is made of them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from meinst_d2.encoding import npz
from meinst_d2.encoding.npz import NpzFile

DTYPES = ("?", "i1", "i8", "u2", "f2", "f4", ">f4", "f8", "c8", "S3", "U3", "M8[s]")


def read(path: Path, name: str = "a") -> np.ndarray:
    with NpzFile(path, [name]) as file:
        shape, dtype = file.headers[name]
        array = file.read(name)
    assert (array.shape, array.dtype) == (shape, dtype)
    return array


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_of_any_type_is_read(tmp_path: Path, dtype: str, write: Callable[..., None]) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    write(tmp_path / "c.npz", a=array)
    loaded = read(tmp_path / "c.npz")
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.zeros((3, 0, 2), np.float32),
        np.array(3.0),
        np.array("a text"),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10)[::3],
    ],
    ids=lambda array: f"{array.shape}{array.dtype}",
)
def test_an_array_of_any_layout_is_read(tmp_path: Path, array: np.ndarray, write: Callable[..., None]) -> None:
    write(tmp_path / "c.npz", a=array)
    np.testing.assert_array_equal(read(tmp_path / "c.npz"), array)


@settings(max_examples=100, deadline=None)
@given(array=arrays_of.arrays(arrays_of.scalar_dtypes(), arrays_of.array_shapes(min_dims=0, min_side=0)))
def test_any_array_is_read(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "c.npz"
    np.savez(path, a=array)
    np.testing.assert_array_equal(read(path), array)


def test_only_the_wanted_arrays_are_looked_at(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.ones(3), other=np.array([None]))
    with NpzFile(tmp_path / "c.npz", ["a", "absent"]) as file:
        assert list(file.headers) == ["a"]


def test_a_header_is_known_before_the_array_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.ones((3, 4), np.float32))
    with NpzFile(tmp_path / "c.npz", ["a"]) as file:
        assert file.headers == {"a": ((3, 4), np.dtype(np.float32))}


def array_file(descr: str = "'<f4'", shape: str = "(2,)", data: bytes = bytes(8), version: int = 1) -> bytes:
    """A .npy, whatever it claims."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + data


def archive_of(path: Path, member: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", member)
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_an_array_made_by_hand_is_read(tmp_path: Path, version: int) -> None:
    assert read(archive_of(tmp_path / "c.npz", array_file(version=version))).tolist() == [0, 0]


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        read(path)
    assert type(error.value) is ValueError and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "shape", ["(3,)", f"({10**18},)", f"({2**62}, 4)", f"({2**32}, {2**32})", "(-2,)", "()", "(0,)"]
)
def test_a_shape_of_other_bytes_is_refused(tmp_path: Path, shape: str) -> None:
    path = archive_of(tmp_path / "c.npz", array_file(shape=shape))
    assert_refused(path, r"a should be \(.*\) of float32, but has 8 bytes")


def test_sides_that_are_negative_twice_are_refused(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "c.npz", array_file(shape="(-1, -2)"))
    assert_refused(path, r"a should be \(-1, -2\) of float32, but has 8 bytes")


@pytest.mark.parametrize("shape", ["(2.0,)", "2", "'2'", "[2]", "None", "(2,", "(" * 300, "__import__('os')"])
def test_a_shape_that_is_no_tuple_of_numbers_is_refused(tmp_path: Path, shape: str) -> None:
    assert_refused(archive_of(tmp_path / "c.npz", array_file(shape=shape)), ".")


@pytest.mark.parametrize("descr", ["()", "[()]", "[('x',)]", "[(1, 2)]", "{}", "1", "',4'", "[{}]", "['f4']"])
def test_a_type_that_is_none_is_refused(tmp_path: Path, descr: str) -> None:
    assert_refused(archive_of(tmp_path / "c.npz", array_file(descr=descr)), ".")


@pytest.mark.parametrize("header", ["{'descr': 'f4', b'shape': ()}", "{1: 2, 'a': 3}", "{}", "[]", "{'descr': 'f4'"])
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: str) -> None:
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    assert_refused(archive_of(tmp_path / "c.npz", content), ".")


def test_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", a=np.array([None]))
    assert_refused(tmp_path / "c.npz", "a holds Python objects, which could run code")
    assert_refused(archive_of(tmp_path / "c.npz", array_file("[('x', '|O')]")), "a holds Python objects")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "c.npz", a=np.zeros(10**6))
    assert_refused(tmp_path / "c.npz", r"a would grow from [\d,]+ to 8,000,128 bytes, [\d,]+ are the most")


def test_a_bomb_that_claims_to_be_less_dense_is_refused(tmp_path: Path) -> None:
    member = array_file(shape="(1000000,)", data=bytes(4 * 10**6))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", member)
        archive.getinfo("a.npy").compress_size = 10**6
    assert_refused(tmp_path / "c.npz", "its members overlap")


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("a.npy", array_file(shape="(1000,)", data=bytes(4000)))
        first = archive.getinfo("a.npy")
        other = zipfile.ZipInfo("b.npy")
        other.header_offset, other.CRC = first.header_offset, first.CRC
        other.file_size = other.compress_size = first.file_size
        archive.filelist.append(other)
    assert_refused(tmp_path / "c.npz", "its members overlap")


def test_an_array_larger_than_any_components_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "LARGEST", 1000)
    np.savez(tmp_path / "c.npz", a=np.ones(100))
    read(tmp_path / "c.npz")
    np.savez(tmp_path / "c.npz", a=np.ones(200))
    assert_refused(tmp_path / "c.npz", "a would grow from 1,728 to 1,728 bytes, 1,000 are the most")


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (b"", "."),
        (b"\x93NUMPY", "."),
        (b"text", "."),
        (array_file(version=3), "it has arrays of format 3.0"),
        (array_file(version=9), "it has arrays of format 9.0|we only support format version"),
        (array_file(descr="'f4' + " * 2000 + "'f4'"), "Header info length .* is large"),
        (array_file(descr="'<f9'"), "descr is not a valid dtype descriptor"),
        (b"\x93NUMPY\x01\x00\xff\xffshort", "EOF"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xffshort", "EOF"),
    ],
    ids=range(9),
)
def test_a_member_that_is_no_array_is_refused(tmp_path: Path, member: bytes, reason: str) -> None:
    assert_refused(archive_of(tmp_path / "c.npz", member), reason)


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "c.npz", array_file(data=b"12345678"))
    path.write_bytes(path.read_bytes().replace(b"12345678", b"12345679"))
    assert_refused(path, "Bad CRC-32")


def test_an_encrypted_array_is_refused(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "c.npz", array_file())
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    path.write_bytes(content)
    assert_refused(path, "encrypted")


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, write: Callable[..., None]) -> None:
    write(tmp_path / "c.npz", a=np.arange(20.0))
    whole = (tmp_path / "c.npz").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "c.npz").write_bytes(whole[:length])
        assert_refused(tmp_path / "c.npz", ".")


@settings(max_examples=200, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), compressed=st.booleans())
def test_one_changed_byte_gives_the_array_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, at: float, byte: int, compressed: bool
) -> None:
    file = io.BytesIO()
    array: Any = np.arange(20, dtype=np.float32)
    (np.savez_compressed if compressed else np.savez)(file, a=array)
    content = bytearray(file.getvalue())
    content[int(at * len(content))] = byte
    path = tmp_path_factory.getbasetemp() / "c.npz"
    path.write_bytes(content)
    try:
        with NpzFile(path, ["a"]) as opened:
            for name in opened.headers:
                np.testing.assert_array_equal(opened.read(name), array)
    except ValueError as error:
        assert type(error) is ValueError
