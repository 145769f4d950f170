"""What files of weights may hold, whoever wrote them, and what is refused before anything is made of it."""

import io
import json
import pickle
import re
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from meinst_d2.checkpoint import readers
from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.model_zoo.publish import safetensors_of

OWN_STORAGE = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
OWN_STORAGE += ("complex64", "complex128")
STORED_AS_BYTES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex32")
"""torch.save writes them in archives; what it makes of them before, torch.load does not read."""
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)
REFUSED = "is refused: weights must be tensors, arrays and plain containers in a whole file "


def same(first: Any, second: Any) -> bool:
    if isinstance(first, (torch.Tensor, np.ndarray)):
        return (first.dtype, first.shape) == (second.dtype, second.shape) and bytes_of(first) == bytes_of(second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and bool(first == second)


def bytes_of(tensor: torch.Tensor | np.ndarray) -> Any:
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).tobytes()
    return [tensor.stride(), tensor.detach().contiguous().clone().untyped_storage().tolist()]


def saved(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def read_content(path: Path, content: Any, *, zipped: bool = True, protocol: int | None = None) -> Any:
    """What comes back of a value beside weights, from a file of torch.save or, with a protocol, a pickle."""
    whole = {"model": {}, "content": content}
    if protocol is None:
        saved(path, whole, zipped)
    else:
        path.write_bytes(pickle.dumps(whole, protocol))
    return read_checkpoint(path)["content"]


def read_bytes(folder: Path, data: bytes, name: str = "w.pkl") -> Any:
    (folder / name).write_bytes(data)
    return read_checkpoint(folder / name)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", OWN_STORAGE + STORED_AS_BYTES)
def test_a_tensor_of_any_type_is_read(tmp_path: Path, dtype: str, zipped: bool) -> None:
    if dtype in STORED_AS_BYTES and not zipped:
        pytest.skip("torch.load does not read them either")
    tensor = torch.arange(48, dtype=torch.uint8).remainder(2).view(getattr(torch, dtype))
    try:
        assert same(read_content(tmp_path / "w.pth", tensor, zipped=zipped), tensor)
    except KeyError:
        pytest.skip(f"torch {torch.__version__} cannot save {dtype}")


CONTENTS = {
    "views that share a storage": lambda base: {"rows": base[2:4], "columns": base.T, "whole": base},
    "no elements": lambda base: {"none": torch.zeros(0), "no rows": torch.zeros(0, 3), "no columns": base[:, :0]},
    "a number": lambda base: torch.tensor(3.0),
    "one element many times": lambda base: torch.ones(1).expand(1000),
    "parameters": lambda base: OrderedDict(weight=torch.nn.Parameter(base)),
    "containers in containers": lambda base: {"a": [{"b": (base, [base, {}])}, ()], 3: {"x": None}},
    "plain values": lambda base: [1, -5, 2**70, 1.5, True, None, "ä"],
    "rare values": lambda base: [b"ab", 1 + 2j, {1, 2}, Counter("aab")],
    "torch's own values": lambda base: [torch.Size([1, 2]), torch.device("cpu"), torch.float16],
    "an optimizer": lambda base: torch.optim.AdamW([torch.nn.Parameter(base)]).state_dict(),
    "a state dict": lambda base: torch.nn.BatchNorm2d(3).state_dict(),
    "conjugates": lambda base: torch.complex(base, base).conj().resolve_conj(),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", CONTENTS)
def test_what_training_saves_is_read(tmp_path: Path, name: str, zipped: bool) -> None:
    content = CONTENTS[name](torch.arange(20.0).reshape(5, 4))
    assert same(read_content(tmp_path / "w.pth", content, zipped=zipped), content)


@pytest.mark.parametrize("zipped", [True, False])
def test_views_of_one_storage_stay_so(tmp_path: Path, zipped: bool) -> None:
    base = torch.zeros(5, 4)
    loaded = read_checkpoint(saved(tmp_path / "w.pth", {"whole": base, "row": base[2]}, zipped))["model"]
    loaded["whole"][2] = 7
    assert loaded["row"].tolist() == [7] * 4
    assert loaded["row"].untyped_storage().data_ptr() == loaded["whole"].untyped_storage().data_ptr()


@settings(max_examples=60, deadline=None)
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    ),
    shape=st.lists(st.integers(0, 4), max_size=4),
    zipped=st.booleans(),
)
def test_any_content(tmp_path_factory: pytest.TempPathFactory, content: Any, shape: list[int], zipped: bool) -> None:
    whole = {"tensor": torch.ones(shape), "content": content}
    assert same(read_content(tmp_path_factory.getbasetemp() / "w.pth", whole, zipped=zipped), whole)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_array_of_any_layout_and_a_scalar_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = [np.zeros(0), np.zeros((3, 0), np.float32), np.array(3.0), np.asfortranarray(np.arange(6.0).reshape(2, 3))]
    arrays += [np.arange(12).reshape(3, 4).T, np.arange(10)[::3], np.broadcast_to(np.float32(1), (2, 3))]
    values = [*arrays, arrays[0], np.float32(3), np.int64(-1), np.bool_(True), np.complex64(1j)]
    assert same(read_content(tmp_path / "w.pkl", values, protocol=protocol), values)


@settings(max_examples=100, deadline=None)
@given(
    array=arrays_of.arrays(
        arrays_of.integer_dtypes()
        | arrays_of.unsigned_integer_dtypes()
        | arrays_of.floating_dtypes()
        | arrays_of.complex_number_dtypes()
        | arrays_of.boolean_dtypes()
        | st.sampled_from(["S3", "U3", "g", ">f4"]).map(np.dtype),
        arrays_of.array_shapes(min_dims=0, min_side=0),
    ),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_any_array_is_read(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, protocol: int) -> None:
    loaded = read_content(tmp_path_factory.getbasetemp() / "w.pkl", array, protocol=protocol)
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_the_model_zoo_writes_is_read_as_tensors(tmp_path: Path, protocol: int) -> None:
    weights = OrderedDict([("a", np.ones((2, 3), np.float32)), ("b", np.zeros(2, ">f4")), ("c", np.float64(3))])
    content = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    loaded = read_bytes(tmp_path, pickle.dumps(content, protocol))
    assert list(loaded) == list(content) and loaded["__author__"] == "torchvision" and loaded["matching_heuristics"]
    assert same(loaded["model"], {"a": torch.ones(2, 3), "b": torch.zeros(2), "c": torch.tensor(3.0).double()})


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    data = (
        b"\x80\x02}q\x01U\x01aq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02f4K\x00K\x01\x87Rq\x07(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08\x00\x00\x80?\x00\x00\x00@tbs."
    )
    assert read_bytes(tmp_path, data)["model"]["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "content",
    [
        *(np.array([None, {}], object), np.zeros(2, [("a", "f4")]), np.zeros(2, "M8[s]"), np.ma.array([1])),
        *(np.zeros((1, 1)).view(np.matrix), Path("x"), print, slice(3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("protocol", [4, 5])
def test_other_objects_are_refused(tmp_path: Path, content: Any, protocol: int) -> None:
    with pytest.raises(ValueError, match=f"w.pkl {REFUSED}.*(it asks for|it changes dtype|OBJECT)"):
        read_content(tmp_path / "w.pkl", content, protocol=protocol)


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
ARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"


def array_pickle(shape: bytes = b"I2\n", dtype: bytes = b"f4", data: bytes = bytes(8)) -> bytes:
    """A pickle of an array, whatever it claims."""
    plain = DTYPE + b"(U" + bytes([len(dtype)]) + dtype + b"I00\nI01\ntR"
    array = RECONSTRUCT + b"(" + ARRAY + b"(I0\ntU\x01btR(I1\n(" + shape + b"t" + plain + b"I00\nU\x08" + data + b"tb"
    return b"}U\x01a" + array + b"s."


SHAPES = [b"I3\n", b"I1000000000000\n", b"L4611686018427387906L\n", b"I1\nI1\n", b"", b"I-2\n", b"I-1\nI-2\n"]


def test_an_array_is_filled_once(tmp_path: Path) -> None:
    """Another array may look into its memory, which filling it again would free."""
    array = array_pickle()[4:-2]  # with neither the dictionary nor the end
    fill = array[array.index(b"(I1\n") :]
    read_bytes(tmp_path, b"}U\x01a" + array + b"s.")
    with pytest.raises(ValueError, match="it changes array"):
        read_bytes(tmp_path, b"}U\x01a" + array + fill + b"s.")


@pytest.mark.parametrize("shape", [*SHAPES, b"F2.0\n", b"NI2\n", b"I01\nI2\n"])
def test_a_shape_of_other_bytes_is_refused(tmp_path: Path, shape: bytes) -> None:
    assert read_bytes(tmp_path, array_pickle())["model"]["a"].tolist() == [0, 0]
    with pytest.raises(ValueError, match="it has an array of .* of shape .* in 8 bytes"):
        read_bytes(tmp_path, array_pickle(shape))


@pytest.mark.parametrize(
    "data",
    [
        *(array_pickle(dtype=dtype) for dtype in (b"f4,f4", b"O", b"S0", b"")),
        ARRAY + b"(I99999\ntR.",
        ARRAY + b"(I99999\nt\x81.",
        DTYPE + b"(U\x02f4tR(I3\nU\x01XNNNI-1\nI-1\nI0\ntb.",
        b"c__builtin__\nbytes\n(I99999\ntR.",
        b"c_codecs\nencode\n}U\x01aU\x01bsb.",
        b"cos\nsystem\n(U\x04truetR.",
        b"c__builtin__\neval\n(U\x011tR.",
        b"c__builtin__\nbytearray\n(I99999\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cbuiltins\nset\n"
        + array_pickle(b"L1000000000000L\nI0\n", data=b"")[4:-2].replace(b"U\x08", b"U\x00")
        + b"R.",
        b"X\xff\xff\xff\x7fshort.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00short.",
        b"\x95\x00\x00\x00\x00\x01\x00\x00\x00N.",
        b"N",
        b"",
    ],
)
def test_what_is_asked_for_in_another_way_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ValueError, match=r"w.pkl (is refused|holds an object of type)"):
        read_bytes(tmp_path, data)


@pytest.mark.parametrize("data", [b"}r\xff\xff\xff\x7f.", b"}p99999999\n."])
def test_a_memo_of_any_length_costs_nothing(tmp_path: Path, data: bytes) -> None:
    assert read_bytes(tmp_path, data)["model"] == {}


def archive_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


def members_of(content: Any) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_what_is_compressed_or_overlaps_is_refused(tmp_path: Path) -> None:
    path = archive_of(tmp_path / "w.pth", members_of({"a": torch.zeros(10**6)}), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its parts are compressed or overlap"):
        read_checkpoint(path)
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name, data in members_of({"a": torch.zeros(1000)}).items():
            archive.writestr(f"archive/{name}", data)
        storage = archive.getinfo("archive/data/0")
        for i in range(1, 5):
            other = zipfile.ZipInfo(f"archive/data/{i}")
            other.header_offset, other.CRC = storage.header_offset, storage.CRC
            other.file_size = other.compress_size = storage.file_size
            archive.filelist.append(other)
    with pytest.raises(ValueError, match="its parts are compressed or overlap"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize("members", [{}, {"version": b"3"}, {"data.pkl": b"}.", "byteorder": b"big"}])
def test_an_archive_of_something_else_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        read_checkpoint(archive_of(tmp_path / "w.pth", members))


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"a": torch.full((1000,), 0.1)})
    content = bytearray(path.read_bytes())
    content[content.index(np.float32(0.1).tobytes() * 9)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Bad CRC-32 for file 'w/data/0'"):
        read_checkpoint(path)


@dataclass
class Claim:
    """Pickled as a call of torch's function that makes a tensor, with a storage of any size.

    Attributes:
        shape, count: of the tensor, and of the elements of its storage.
        stride: of every side.
        offset: in the storage.
        dtype: pickled, of a tensor whose storage has no type.
    """

    shape: tuple[Any, ...]
    count: Any = 4
    stride: Any = 1
    offset: Any = 0
    dtype: bytes = b""


class ClaimPickler(pickle._Pickler):
    """Writes claims; the storage is a FloatStorage, or an UntypedStorage where a type follows."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(obj, Claim):
            super().save(obj)
            return
        kind = b"ctorch.storage\nUntypedStorage\n" if obj.dtype else b"ctorch\nFloatStorage\n"
        self.write(b"ctorch._utils\n_rebuild_tensor_v%d\n((" % (3 if obj.dtype else 2))
        super().save("storage")
        self.write(kind)
        for value in ("0", "cpu", obj.count):
            super().save(value)
        self.write(b"tQ")
        for value in (obj.offset, obj.shape, (obj.stride,) * len(obj.shape), False, {}):
            super().save(value)
        self.write(obj.dtype + b"tR")


def pickle_of(*claims: Claim) -> bytes:
    file = io.BytesIO()
    ClaimPickler(file, 2).dump({str(i): claim for i, claim in enumerate(claims)})
    return file.getvalue()


def claims(path: Path, *content: Claim) -> Path:
    return archive_of(path, {"data.pkl": pickle_of(*content), "data/0": bytes(16), "version": b"3\n"})


@pytest.mark.parametrize(
    "claim", [Claim((2,)), Claim((4,)), Claim((2, 2)), Claim((0,), offset=9), Claim((9,), stride=0)], ids=str
)
def test_a_tensor_inside_its_storage_is_read(tmp_path: Path, claim: Claim) -> None:
    loaded = read_checkpoint(claims(tmp_path / "w.pth", claim))["model"]["0"]
    assert loaded.shape == claim.shape and loaded.stride() == (claim.stride,) * len(claim.shape) and not loaded.any()


BEYOND = [Claim((5,)), Claim((10**4,), 10**4), Claim((2,), offset=3), Claim((1,), offset=10**12), Claim((3, 3))]
BEYOND += [Claim((2,), stride=10**12), Claim((2**32,), stride=2**40), Claim((3,), 16, dtype=b"ctorch\nuint64\n")]
ABSURD = [Claim(shape, stride=0) for shape in ((2**40,), (2**32, 2**32), (2**62, 4), (10**10,) * 3)]
NO_LENGTHS = [Claim(shape) for shape in ((-1,), (2, -3), (1.5,), (True,), ("2",))]
NO_LENGTHS += [Claim((1,), offset=-1), Claim((2,), stride=-1), Claim((2,), stride=1.0)]


@pytest.mark.parametrize(
    ("claim", "reason"),
    [(claim, "") for claim in BEYOND]
    + [(claim, "it claims tensors of .* bytes") for claim in ABSURD]
    + [(claim, "it makes a tensor in an unknown way") for claim in NO_LENGTHS],
    ids=str,
)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(tmp_path: Path, claim: Claim, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{REFUSED}.*{reason}"):
        read_checkpoint(claims(tmp_path / "w.pth", claim))


def test_claims_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "SLACK", 10_000)
    for claim in (Claim((1000,), stride=0), Claim((4000,), 16, 0, dtype=b"ctorch\nfloat8_e5m2\n")):
        read_checkpoint(claims(tmp_path / "w.pth", claim))
        with pytest.raises(ValueError, match="it claims tensors of"):
            read_checkpoint(claims(tmp_path / "w.pth", *[claim] * 10))


@pytest.mark.parametrize(
    "call",
    [
        b"ctorch\nzeros\n(I99999\ntR.",
        *(b"ctorch._utils\n_rebuild_%s\n(tR." % x for x in (b"meta_tensor_no_storage", b"qtensor", b"sparse_tensor")),
        b"ctorch._utils\n_rebuild_wrapper_subclass\n(tR.",
        b"ctorch\nFloatStorage\n(I99999\ntR.",
        b"ctorch.storage\nUntypedStorage\n(I99999\ntR.",
        b"cos\nsystem\n(tR.",
    ],
)
def test_what_could_make_anything_is_not_called(tmp_path: Path, call: bytes) -> None:
    with pytest.raises(ValueError, match=REFUSED):
        read_checkpoint(archive_of(tmp_path / "w.pth", {"data.pkl": b"\x80\x02" + call}))


@pytest.mark.parametrize("kind", [b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"cbuiltins\nset\n"])
@pytest.mark.parametrize("arguments", [b"\x85", b""])
def test_a_large_tensor_is_not_taken_apart(tmp_path: Path, kind: bytes, arguments: bytes) -> None:
    """It says it repeats one number 10**8 times; each would be a tensor of its own."""
    tensor = pickle_of(Claim((10**8,), stride=0))
    tensor = tensor[tensor.index(b"c") : tensor.rindex(b"R") + 1]
    data = b"\x80\x02}U\x05model" + kind + tensor + arguments + b"Rs."
    tracemalloc.start()
    with suppress(ValueError):
        assert read_checkpoint(archive_of(tmp_path / "w.pth", {"data.pkl": data, "data/0": bytes(16)}))["model"] == {}
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()


@pytest.mark.parametrize(
    "then", [b"}b", b"Nb", b"(K\x00(I99999999\nt(I1\nttb", b"K\x00K\x01s", b"(I99\nK\x00u", b"K\x00a"]
)
def test_nothing_is_set_in_a_tensor(tmp_path: Path, then: bytes) -> None:
    """Versions of torch before 2.10 wrote to memory then."""
    data = pickle_of(Claim((4,)))
    assert data.endswith(b"Rq\x0es.") or data.endswith(b"Rs.")
    data = data[: data.rindex(b"R") + 1] + then + b"s."
    with pytest.raises(ValueError, match=REFUSED):
        read_checkpoint(archive_of(tmp_path / "w.pth", {"data.pkl": data, "data/0": bytes(16)}))


LEGACY_HEADERS = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}."


@pytest.mark.parametrize("count", [10**6, 10**12])
def test_a_legacy_file_that_claims_more_than_it_is_long_is_refused(tmp_path: Path, count: int) -> None:
    content = LEGACY_HEADERS + pickle_of(Claim((count,), count)) + pickle.dumps(["0"], 2) + bytes(100)
    with pytest.raises(ValueError, match=REFUSED):
        read_bytes(tmp_path, content, "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "legacy.pth", "w.pkl"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, name: str) -> None:
    content: Any = {"model": {"a": torch.arange(20.0), "b": torch.arange(3)}}
    if name == "w.pkl":
        content = {"model": {key: value.numpy() for key, value in content["model"].items()}}
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        saved(tmp_path / name, content, zipped=name == "w.pth")
    whole = (tmp_path / name).read_bytes()
    for length in range(0, len(whole), 7):
        with pytest.raises(ValueError, match=f"{name} {REFUSED}"):
            read_bytes(tmp_path, whole[:length], name)


@pytest.mark.parametrize("name", ["m.pth", "m.pkl", "m.pyth"])
def test_garbage_is_refused_whatever_it_is(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    good = pickle.dumps({"model": {"a": np.arange(6.0)}})
    for length in (0, 1, 2, 5, 40, 200):
        for content in (rng.bytes(length), good[:length], good[: length // 2] + rng.bytes(length)):
            if content == good:
                continue
            with pytest.raises(ValueError, match=f"{name} (is refused|holds an object of type)"):
                read_bytes(tmp_path, content, name)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_bare_state_dict_is_the_model(tmp_path: Path, wrapped: bool, zipped: bool) -> None:
    state = {"a": torch.arange(3)}
    path = saved(tmp_path / "w.pth", {"model": state, "iteration": 5} if wrapped else state, zipped)
    content = read_checkpoint(path)
    assert torch.equal(content["model"]["a"], state["a"]) and set(content) == {"model", *(("iteration",) * wrapped)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds an object of type list instead of weights by name"),
        ({"model": [1]}, "holds an object of type list instead of weights by name"),
        (torch.zeros(1), "holds an object of type Tensor instead of weights by name"),
        ({1: np.zeros(1)}, "is not a checkpoint: a weight has the name 1, which is not a string"),
        ({"a": "text"}, "is not a checkpoint: a is of type str instead of a tensor"),
        ({"model": {"a": np.array("text")}}, "is not a checkpoint: a is of type ndarray instead of a tensor"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.pyth", "w.pkl"])
def test_what_is_not_a_state_dict_is_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    if name == "w.pkl" and isinstance(content, torch.Tensor):
        pytest.skip("pickles hold no tensors")
    (tmp_path / name).write_bytes(pickle.dumps(content)) if name == "w.pkl" else torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(f"{name} {message}")):
        read_checkpoint(tmp_path / name)


def test_averaged_weights_are_the_model(tmp_path: Path) -> None:
    """Wherever they are in the file; what other tools keep under the same name is not looked at."""
    raw, averaged = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    for content in (
        {"model": raw, "ema": {"model": averaged, "updates": 3}},  # of earlier versions
        {"model": averaged, "ema": {"raw": raw, "updates": 3}},
    ):
        loaded = read_checkpoint(saved(tmp_path / "w.pth", content))
        assert same(loaded, {"model": averaged, "ema": {"updates": 3, "raw": raw}})
    for average in (None, {}, [1], 0.9):
        assert same(read_checkpoint(saved(tmp_path / "w.pth", {"model": raw, "ema": average}))["model"], raw)
    for average in ({"decay": 0.9}, {"model": None}, {"raw": [1]}):
        with pytest.raises(ValueError, match="instead of weights by name"):
            read_checkpoint(saved(tmp_path / "w.pth", {"model": raw, "ema": average}))


def test_safetensors_keep_weights_and_what_is_said_about_them(tmp_path: Path) -> None:
    state = {"a": torch.randn(2, 3).T, "b": torch.arange(4)}
    (tmp_path / "w.safetensors").write_bytes(safetensors_of(state, {"class_names": ["x"], "sigmoid": True}))
    content = read_checkpoint(tmp_path / "w.safetensors")
    assert content["meinst"] == {"class_names": ["x"], "sigmoid": True}
    assert all(torch.equal(content["model"][name], value) for name, value in state.items())
    with pytest.raises(FileNotFoundError, match="absent.safetensors"):
        read_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("shape", [[0, 2**63], [2**63, 2], [2**62, 4], [-1], [1.5], "2", [0]])
def test_safetensors_of_another_shape_than_their_bytes_are_refused(tmp_path: Path, shape: Any) -> None:
    for num_bytes in (4, 0):
        tensor = {"dtype": "F32", "shape": shape if num_bytes else [0, 2**63], "data_offsets": [0, num_bytes]}
        header = json.dumps({"a": tensor}).encode()
        with pytest.raises(ValueError, match=f"w.safetensors {REFUSED}"):
            read_bytes(tmp_path, len(header).to_bytes(8, "little") + header + bytes(num_bytes), "w.safetensors")
