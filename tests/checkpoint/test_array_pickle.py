"""Which pickles of arrays are read, and which are refused without calling anything."""

import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from meinst_d2.checkpoint.array_pickle import LONGEST_ITEM, require_modest_pickle
from meinst_d2.checkpoint.readers import load_array_pickle

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
DTYPES = ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g", "c8", "c16", "S3", "U3")


def read(folder: Path, data: bytes) -> Any:
    (folder / "w.pkl").write_bytes(data)
    return load_array_pickle(folder / "w.pkl")


def assert_same_array(loaded: Any, array: Any) -> None:
    assert type(loaded) is type(array) and loaded.dtype == array.dtype and loaded.shape == array.shape
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_of_any_plain_type_is_read(tmp_path: Path, dtype: str, protocol: int) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    assert_same_array(read(tmp_path, pickle.dumps({"a": array}, protocol))["a"], array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.zeros(0),
        np.zeros((3, 0), np.float32),
        np.array(3.0),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(12).reshape(3, 4).T,
        np.arange(10)[::3],
        np.broadcast_to(np.float32(1), (2, 3)),
        np.float32(3),
        np.int64(-1),
        np.bool_(True),
        np.complex64(1j),
    ],
    ids=lambda array: f"{type(array).__name__}{array.shape}{array.dtype}",
)
def test_an_array_of_any_layout_and_a_scalar_are_read(tmp_path: Path, array: Any, protocol: int) -> None:
    assert_same_array(read(tmp_path, pickle.dumps({"model": {"a": array}}, protocol))["model"]["a"], array)


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    for protocol in PROTOCOLS:
        loaded = read(tmp_path, pickle.dumps({"a": np.arange(3, dtype=">f4")}, protocol))["a"]
        assert loaded.tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_model_zoo_writes_is_read(tmp_path: Path, protocol: int) -> None:
    weights = OrderedDict([("conv1.weight", np.ones((2, 3), np.float32)), ("conv1.bias", np.zeros(2, np.float32))])
    content = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    loaded = read(tmp_path, pickle.dumps(content, protocol))
    assert list(loaded) == list(content) and loaded["__author__"] == "torchvision" and loaded["matching_heuristics"]
    assert list(loaded["model"]) == list(weights)
    assert_same_array(loaded["model"]["conv1.weight"], weights["conv1.weight"])


def test_a_dictionary_that_occurs_twice_is_made_once(tmp_path: Path) -> None:
    inner = {"a": np.zeros(2)}
    middle = {"x": inner, "y": inner}
    loaded = read(tmp_path, pickle.dumps({"model": middle, "again": middle}))
    assert loaded["model"] is loaded["again"] and loaded["model"]["x"] is loaded["model"]["y"]
    assert type(loaded["model"]["x"]["a"]) is np.ndarray


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    data = (
        b"\x80\x02}q\x01U\x01aq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
    )
    assert_same_array(read(tmp_path, data)["a"], np.array([1, 2], np.float32))


@settings(max_examples=100, deadline=None)
@given(
    array=arrays_of.arrays(
        arrays_of.integer_dtypes() | arrays_of.floating_dtypes() | arrays_of.boolean_dtypes(),
        arrays_of.array_shapes(min_dims=0, min_side=0),
    ),
    protocol=st.sampled_from(PROTOCOLS),
)
def test_any_array_of_numbers_is_read(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, protocol: int
) -> None:
    loaded = read(tmp_path_factory.getbasetemp(), pickle.dumps({"a": array}, protocol))["a"]
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.array([None, {}], object), "an array of 'O8', which are no numbers"),
        (np.zeros(2, [("a", "f4")]), "an array of 'V4', which are no numbers"),
        (np.zeros(2, "M8[s]"), "an array of 'M8', which are no numbers"),
        (np.zeros(1, f"S{LONGEST_ITEM + 1}"), f"an array of 'S{LONGEST_ITEM + 1}', which are no numbers"),
        (np.ma.array([1]), "it asks for numpy.ma.core._mareconstruct"),
        (np.zeros((1, 1)).view(np.matrix), "it asks for numpy.matrix"),
        (Path("x"), "it asks for pathlib"),
        (print, "it asks for builtins.print"),
        (slice(3), "it asks for builtins.slice"),
    ],
    ids=str,
)
@pytest.mark.parametrize("protocol", [4, 5])
def test_other_objects_are_refused(tmp_path: Path, content: Any, reason: str, protocol: int) -> None:
    with pytest.raises(ValueError, match=f"w.pkl is refused: .*{re.escape(reason)}"):
        read(tmp_path, pickle.dumps({"a": content}, protocol))


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"


def array_pickle(shape: bytes = b"I2\n", dtype: bytes = b"f4", data: bytes = bytes(8)) -> bytes:
    """A pickle of an array, whatever it claims."""
    plain = DTYPE + b"(U" + bytes([len(dtype)]) + dtype + b"I00\nI01\ntR"
    return RECONSTRUCT + b"(" + ARRAY + b"(I0\ntU\x01btR(I1\n(" + shape + b"t" + plain + b"I00\nU\x08" + data + b"tb."


def test_a_pickle_made_by_hand_is_read(tmp_path: Path) -> None:
    assert_same_array(read(tmp_path, array_pickle()), np.zeros(2, np.float32).view(np.ndarray))


@pytest.mark.parametrize("shape", [b"I3\n", b"I1000000000000\n", b"L4611686018427387906L\n", b"I1\nI1\n", b""])
def test_a_shape_of_other_bytes_is_refused(tmp_path: Path, shape: bytes) -> None:
    with pytest.raises(ValueError, match="it has an array of shape .* in 8 bytes"):
        read(tmp_path, array_pickle(shape))


@pytest.mark.parametrize("shape", [b"I-2\n", b"I-1\nI-2\n", b"F2.0\n", b"NI2\n", b"I01\nI2\n"])
def test_a_side_that_is_no_length_is_refused(tmp_path: Path, shape: bytes) -> None:
    with pytest.raises(ValueError, match="it makes an array in an unknown way"):
        read(tmp_path, array_pickle(shape))


@pytest.mark.parametrize("dtype", [b"f4,f4", b",4", b"f4,", b"O", b"S0", b"U0", b"V8", b"2f4", b"", b"float32", b"a8"])
def test_a_type_that_is_no_number_is_refused(tmp_path: Path, dtype: bytes) -> None:
    with pytest.raises(ValueError, match=re.escape(f"an array of {dtype.decode()!r}, which are no numbers")):
        read(tmp_path, array_pickle(dtype=dtype))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ARRAY + b"(I99999\ntR.", "it calls numpy.ndarray"),
        (RECONSTRUCT + b"(" + ARRAY + b"(I99999\ntU\x01btR.", "it makes an array in an unknown way"),
        (DTYPE + b"(U\x02f4tR(I3\nU\x01<(U\x01aNdNI-1\nI-1\nI0\ntb.", "it has an array of records"),
        (b"c_codecs\nencode\n(U\x01aU\x03zlbtR.", "it encodes as 'zlb'"),
        (b"c__builtin__\nbytes\n(I99999\ntR.", "it makes bytes in an unknown way"),
        (b"c_codecs\nencode\n}U\x01aU\x01bsb.", "it changes a function"),
        (b"cos\nsystem\n(U\x04truetR.", "it asks for os.system"),
        (b"c__builtin__\neval\n(U\x011tR.", "it asks for __builtin__.eval"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "it asks for numpy.core.multiarray.fromfile"),
    ],
)
def test_what_is_called_another_way_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=f"w.pkl is refused: .*{re.escape(reason)}"):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"Nr\xff\xff\xff\x7f.", "it asks for a memo of 2,147,483,647 entries"),
        (b"Np99999999\n.", "it asks for a memo of 99,999,999 entries"),
        (b"Nq\xff.", "it asks for a memo of 255 entries"),
        (b"\x95\x00\x00\x00\x00\x01\x00\x00\x00N.", "it claims a frame of 4,294,967,296 bytes"),
        (b"X\xff\xff\xff\x7fshort.", "expected 2147483647 bytes"),
        (b"B\xff\xff\xff\x7fshort.", "expected 2147483647 bytes"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00short.", "expected 72057594037927935 bytes"),
        (b"\x96\xff\xff\xff\xff\xff\xff\xff\x00short.", "expected 72057594037927935 bytes"),
        (b"N", "pickle exhausted before seeing STOP"),
    ],
)
def test_a_pickle_that_claims_more_than_it_is_long_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises((ValueError, pickle.UnpicklingError), match=reason):
        require_modest_pickle(io.BytesIO(data), len(data))
    with pytest.raises(ValueError, match=f"w.pkl is refused: .*{reason}"):
        read(tmp_path, data)


def test_the_file_is_left_after_the_pickle() -> None:
    data = pickle.dumps({"a": np.zeros(100)})
    file = io.BytesIO(data + b"rest")
    require_modest_pickle(file, len(data) + 4)
    assert file.read() == b"rest"
