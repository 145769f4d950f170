"""Which files of arrays are read as components, and which are refused before anything is made of them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.encoding import components, load_components

ARRAYS = {
    "components_c": np.array([[[1, 0, 0, 0]]], np.float32),
    "mean_c": np.zeros((1, 4), np.float32),
    "explained_variance_c": np.ones((1, 1), np.float32),
    "ratio_c": np.ones((1, 1), np.float32),
}
SAVE = [np.savez, np.savez_compressed]


def array_file(descr: str = "'<f4'", shape: str = "(1, 4)", data: bytes = bytes(16), version: int = 1) -> bytes:
    """A .npy, whatever it claims."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes((version, 0)) + length + header + data


def file_with(path: Path, member: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Components whose mean is this member."""
    np.savez(path, **{name: array for name, array in ARRAYS.items() if name != "mean_c"})
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("mean_c.npy", member)
    return path


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{path.name} holds no usable components: {reason}") as error:
        load_components(path)
    assert type(error.value) is ValueError and "\n" not in str(error.value)


@pytest.mark.parametrize("write", SAVE)
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f4", "f8"])
def test_floats_of_any_kind_are_read(tmp_path: Path, dtype: str, write: Callable[..., None]) -> None:
    arrays = {name: np.asfortranarray(array.astype(dtype)) for name, array in ARRAYS.items()}
    write(tmp_path / "c.npz", **arrays, other=np.array([None]))  # which is not looked at
    basis = load_components(tmp_path / "c.npz").basis
    assert basis.mean.dtype == np.float32 and basis.components.tolist() == [[1, 0, 0, 0]]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_array_made_by_hand_is_read(tmp_path: Path, version: int) -> None:
    loaded = load_components(file_with(tmp_path / "c.npz", array_file(version=version)))
    assert loaded.basis.mean.tolist() == [0, 0, 0, 0]


SHAPES = ["(1, 5)", f"({10**18},)", f"({2**62}, 4)", f"({2**32}, {2**32})", "(-4,)", "()", "(0,)", "(-1, -4)"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_of_other_bytes_is_refused(tmp_path: Path, shape: str) -> None:
    path = file_with(tmp_path / "c.npz", array_file(shape=shape))
    assert_refused(path, r"mean_c should be \(.*\) of float32, but has 16 bytes")


HEADERS = ["{'descr': 'f4', b'shape': ()}", "{1: 2, 'a': 3}", "{}", "[]", "{'descr': 'f4'"]
MEMBERS = [
    *(array_file(shape=shape) for shape in ("(2.0,)", "2", "'2'", "[2]", "None", "(2,", "(" * 300, "__import__('os')")),
    *(
        array_file(descr)
        for descr in ("()", "[()]", "[('x',)]", "[(1, 2)]", "{}", "1", "',4'", "[{}]", "['f4']", "'f9'")
    ),
    *(b"\x93NUMPY\x01\x00" + len(x).to_bytes(2, "little") + x.encode() for x in HEADERS),
    *(b"", b"\x93NUMPY", b"text", b"\x93NUMPY\x01\x00\xff\xffshort", b"\x93NUMPY\x02\x00\xff\xff\xff\xffshort"),
    *(array_file(version=9), array_file(descr="'f4' + " * 2000 + "'f4'"), array_file("'<i4'"), array_file("'<U4'")),
]


@pytest.mark.parametrize("member", MEMBERS, ids=range(len(MEMBERS)))
def test_a_member_that_is_not_an_array_of_floats_is_refused(tmp_path: Path, member: bytes) -> None:
    assert_refused(file_with(tmp_path / "c.npz", member), ".")


def test_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", **(ARRAYS | {"mean_c": np.array([None])}))
    assert_refused(tmp_path / "c.npz", "mean_c holds Python objects, which could run code")
    assert_refused(file_with(tmp_path / "d.npz", array_file("[('x', '|O')]")), "mean_c holds Python objects")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "c.npz", **(ARRAYS | {"mean_c": np.zeros(10**6)}))
    assert_refused(tmp_path / "c.npz", r"mean_c would grow from [\d,]+ to 8,000,128 bytes, [\d,]+ are the most")


def test_a_bomb_that_claims_to_be_less_dense_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mean_c.npy", array_file(shape="(1000000,)", data=bytes(4 * 10**6)))
        archive.getinfo("mean_c.npy").compress_size = 10**6
    assert_refused(tmp_path / "c.npz", "its members overlap")


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(file_with(tmp_path / "c.npz", array_file(shape="(1000,)", data=bytes(4000))), "a") as archive:
        first = archive.getinfo("mean_c.npy")
        other = zipfile.ZipInfo("b.npy")
        other.header_offset, other.CRC = first.header_offset, first.CRC
        other.file_size = other.compress_size = first.file_size
        archive.filelist.append(other)
        archive._didModify = True
    assert_refused(tmp_path / "c.npz", "its members overlap")


def test_an_array_larger_than_any_components_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "c.npz", **ARRAYS)
    monkeypatch.setattr(components, "LARGEST", 144)
    load_components(tmp_path / "c.npz")
    monkeypatch.setattr(components, "LARGEST", 143)
    assert_refused(tmp_path / "c.npz", "components_c would grow from 144 to 144 bytes, 143 are the most")


def test_a_damaged_array_is_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path / "c.npz", array_file(data=b"0123456789abcdef"))
    path.write_bytes(path.read_bytes().replace(b"9abcdef", b"9abcdeg"))
    assert_refused(path, ".*Bad CRC-32")


def test_an_encrypted_array_is_refused(tmp_path: Path) -> None:
    path = file_with(tmp_path / "c.npz", array_file())
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(header) + flags] |= 1
    path.write_bytes(content)
    assert_refused(path, ".*encrypted")


@pytest.mark.parametrize("write", SAVE)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, write: Callable[..., None]) -> None:
    write(tmp_path / "c.npz", **ARRAYS)
    whole = (tmp_path / "c.npz").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "c.npz").write_bytes(whole[:length])
        assert_refused(tmp_path / "c.npz", ".")


@settings(max_examples=200, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), write=st.sampled_from(SAVE))
def test_one_changed_byte_gives_the_components_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, at: float, byte: int, write: Any
) -> None:
    file = io.BytesIO()
    write(file, **ARRAYS)
    content = bytearray(file.getvalue())
    content[int(at * len(content))] = byte
    path = tmp_path_factory.getbasetemp() / "c.npz"
    path.write_bytes(content)
    try:
        np.testing.assert_array_equal(load_components(path).basis.components, ARRAYS["components_c"][0])
    except ValueError as error:
        assert type(error) is ValueError and str(path) in str(error)
