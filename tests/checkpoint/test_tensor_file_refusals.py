"""What a file of torch.save may not claim: it is refused before torch makes any of it."""

import io
import pickle
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from meinst_d2.checkpoint import tensor_file
from meinst_d2.checkpoint.readers import load_tensor_file
from meinst_d2.checkpoint.tensor_file import require_modest_file
from tests.checkpoint.test_tensor_file import same, saved


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


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    members = members_of({"a": torch.zeros(10**6)})
    path = archive_of(tmp_path / "w.pth", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match=r"is compressed, which torch.save does not do"):
        require_modest_file(path)


def test_parts_that_overlap_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name, data in members_of({"a": torch.zeros(1000)}).items():
            archive.writestr(f"archive/{name}", data)
        storage = archive.getinfo("archive/data/0")
        for i in range(1, 5):
            other = zipfile.ZipInfo(f"archive/data/{i}")
            other.header_offset, other.CRC = storage.header_offset, storage.CRC
            other.file_size = other.compress_size = storage.file_size
            archive.filelist.append(other)
    with pytest.raises(ValueError, match="its parts overlap"):
        require_modest_file(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_parts_of_one_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data.pkl", pickle.dumps([], 2))
    with pytest.raises(ValueError, match="its parts overlap"):
        require_modest_file(tmp_path / "w.pth")


@pytest.mark.parametrize("members", [{}, {"version": b"3"}])
def test_an_archive_without_a_pickle_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    path = archive_of(tmp_path / "w.pth", members)
    with pytest.raises((ValueError, zipfile.BadZipFile, pickle.UnpicklingError, EOFError)):
        require_modest_file(path)
    with pytest.raises(ValueError, match="w.pth is refused"):
        load_tensor_file(path)


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
    count: Any
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


def claims(path: Path, *content: Claim, storage: bytes = bytes(16)) -> Path:
    file = io.BytesIO()
    ClaimPickler(file, 2).dump(dict(enumerate(content)))
    return archive_of(path, {"data.pkl": file.getvalue(), "byteorder": b"little", "data/0": storage, "version": b"3\n"})


def test_a_claim_that_its_storage_holds_is_read(tmp_path: Path) -> None:
    assert same(load_tensor_file(claims(tmp_path / "w.pth", Claim((2,), 4))), {0: torch.zeros(2)})


def test_a_storage_larger_than_its_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="its storage 0 claims 40,000 bytes and has fewer"):
        require_modest_file(claims(tmp_path / "w.pth", Claim((1,), 10**4)))


@pytest.mark.parametrize("count", [-1, -(2**63), 1.5, None, "4", True])
def test_a_storage_of_no_size_is_refused(tmp_path: Path, count: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it refers to something that is no storage"):
        require_modest_file(claims(tmp_path / "w.pth", Claim((1,), count)))


@pytest.mark.parametrize("shape", [(2**40,), (2**32, 2**32), (2**62, 4), (10**10,) * 3])
def test_an_absurd_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it claims tensors of .* bytes or more"):
        require_modest_file(claims(tmp_path / "w.pth", Claim(shape, 4)))


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (1.5,), (True,), ("2",)])
def test_a_side_that_is_no_length_is_refused(tmp_path: Path, shape: tuple[Any, ...]) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it makes a tensor in an unknown way"):
        require_modest_file(claims(tmp_path / "w.pth", Claim(shape, 4)))


@pytest.mark.parametrize(
    "claim",
    [
        Claim((5,), 4),
        Claim((2,), 4, offset=3),
        Claim((1,), 4, offset=10**12),
        Claim((2,), 4, stride=10**12),
        Claim((3, 3), 4),
        Claim((3,), 16, dtype=b"ctorch\nuint64\n"),
    ],
    ids=str,
)
def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path, claim: Claim) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it has a tensor that ends [0-9,]+ bytes into a storage of 16"):
        require_modest_file(claims(tmp_path / "w.pth", claim))


@pytest.mark.parametrize("claim", [Claim((1,), 4, offset=-1), Claim((2,), 4, stride=-1), Claim((2,), 4, stride=1.0)])
def test_a_place_that_is_no_length_is_refused(tmp_path: Path, claim: Claim) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it makes a tensor in an unknown way"):
        require_modest_file(claims(tmp_path / "w.pth", claim))


@pytest.mark.parametrize("claim", [Claim((4,), 4), Claim((2, 2), 4), Claim((0,), 4, offset=9), Claim((9,), 4, 0)])
def test_a_tensor_inside_its_storage_is_read(tmp_path: Path, claim: Claim) -> None:
    assert load_tensor_file(claims(tmp_path / "w.pth", claim))[0].shape == claim.shape


def pickle_of_a_tensor(and_then: bytes) -> dict[str, bytes]:
    file = io.BytesIO()
    ClaimPickler(file, 2).dump(Claim((1,), 4))
    return {"data.pkl": file.getvalue()[:-1] + and_then, "data/0": bytes(16)}


@pytest.mark.parametrize("state", [b"}b.", b"Nb.", b"(K\x00(I99999999\nt(I1\nttb."])
def test_no_state_is_set_on_a_tensor(tmp_path: Path, state: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it changes a tensor"):
        require_modest_file(archive_of(tmp_path / "w.pth", pickle_of_a_tensor(state)))


@pytest.mark.parametrize("items", [b"K\x00K\x00s.", b"(I99999\nK\x00u.", b"K\x00a.", b"(K\x00e."])
def test_no_item_is_set_in_a_tensor(tmp_path: Path, items: bytes) -> None:
    """Versions of torch before 2.10 wrote to memory then."""
    with pytest.raises((TypeError, AttributeError)):
        require_modest_file(archive_of(tmp_path / "w.pth", pickle_of_a_tensor(items)))
    with pytest.raises(ValueError, match="w.pth is refused"):
        load_tensor_file(tmp_path / "w.pth")


def test_claims_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "SLACK", 10_000)
    require_modest_file(claims(tmp_path / "w.pth", Claim((1000,), 4, stride=0)))
    with pytest.raises(pickle.UnpicklingError, match="it claims tensors of"):
        require_modest_file(claims(tmp_path / "w.pth", *[Claim((1000,), 4, stride=0)] * 10))


def test_a_tensor_of_bytes_counts_with_the_size_of_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "SLACK", 10_000)
    for dtype, elements in ((b"float8_e5m2", 10_000), (b"uint16", 5_000), (b"uint64", 1_250)):
        once, twice = (Claim((n * elements,), 16, stride=0, dtype=b"ctorch\n" + dtype + b"\n") for n in (1, 2))
        require_modest_file(claims(tmp_path / "w.pth", once))
        with pytest.raises(pickle.UnpicklingError, match="it claims tensors of"):
            require_modest_file(claims(tmp_path / "w.pth", twice))


@pytest.mark.parametrize("dtype", [b"ctorch\nSize\n", b"cos\nsystem\n", b"N"])
def test_a_tensor_of_bytes_of_no_type_is_refused(tmp_path: Path, dtype: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it makes a tensor in an unknown way"):
        require_modest_file(claims(tmp_path / "w.pth", Claim((1,), 16, dtype=dtype)))


@pytest.mark.parametrize(
    "call",
    [
        b"ctorch\nzeros\n(I99999\ntR.",
        b"c__builtin__\nbytearray\n(I99999\ntR.",
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(tR.",
        b"ctorch._utils\n_rebuild_qtensor\n(tR.",
        b"ctorch._utils\n_rebuild_sparse_tensor\n(tR.",
        b"ctorch._utils\n_rebuild_wrapper_subclass\n(tR.",
        b"ctorch\nFloatStorage\n(I99999\ntR.",
        b"cos\nsystem\n(tR.",
    ],
)
def test_what_could_make_anything_is_not_called(tmp_path: Path, call: bytes) -> None:
    path = archive_of(tmp_path / "w.pth", {"data.pkl": b"\x80\x02" + call})
    with pytest.raises(pickle.UnpicklingError, match="it calls "):
        require_modest_file(path)


LEGACY_HEADERS = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}."


def test_a_legacy_file_that_claims_more_than_it_is_long_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    ClaimPickler(file, 2).dump(Claim((1,), 10**6))
    (tmp_path / "w.pth").write_bytes(LEGACY_HEADERS + file.getvalue() + pickle.dumps(["0"], 2))
    with pytest.raises(pickle.UnpicklingError, match="it claims storages of 4,000,000 bytes in a file of"):
        require_modest_file(tmp_path / "w.pth")


@pytest.mark.parametrize("place", range(5))
def test_no_pickle_of_a_legacy_file_claims_a_text_longer_than_the_file(tmp_path: Path, place: int) -> None:
    parts = [pickle.dumps(part, 2) for part in (1, 2, 3, {}, [])]
    parts[place] = b"\x80\x02X\xff\xff\xff\x7fshort."
    (tmp_path / "w.pth").write_bytes(b"".join(parts))
    with pytest.raises(ValueError, match="expected 2147483647 bytes"):
        require_modest_file(tmp_path / "w.pth")


def test_a_file_that_is_pickles_and_a_tar_archive_at_once_is_refused(tmp_path: Path) -> None:
    name = LEGACY_HEADERS + b"\x80\x02}." + b"\x80\x02]."
    header = bytearray(tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT))
    header[: len(name)] = name
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "w.pth").write_bytes(header + bytes(1024))
    with tarfile.open(tmp_path / "w.pth", "r:") as archive:
        assert len(archive.getnames()) == 1
    with pytest.raises(ValueError, match="it is a tar archive"):
        require_modest_file(tmp_path / "w.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = saved(tmp_path / "w.pth", {"model": {"a": torch.arange(20.0), "b": torch.arange(3)}}, zipped)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="w.pth is refused"):
            load_tensor_file(path)
