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

from meinst_d2.encoding import components, fit_pca, load_components, save_components
from tests.conftest import ROOT, blob_masks, moments_of

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


def test_objects_and_a_bomb_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", **(ARRAYS | {"mean_c": np.array([None])}))
    assert_refused(tmp_path / "c.npz", "mean_c holds Python objects, which could run code")
    assert_refused(file_with(tmp_path / "d.npz", array_file("[('x', '|O')]")), "mean_c holds Python objects")
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


@pytest.fixture(scope="module")
def basis():  # type: ignore[no-untyped-def]
    return fit_pca(moments_of(blob_masks(np.random.default_rng(0), 400, 8))).truncated(6)


def test_round_trip_keeps_arrays_and_provenance(tmp_path: Path, basis) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "new" / "c.npz"
    save_components(path, [basis], {"datasets": ["x"], "sigmoid": True, "whiten": False})
    loaded = load_components(path)
    np.testing.assert_array_equal(loaded.basis.components, basis.components.astype(np.float32))
    assert loaded.basis.components.dtype == np.float32 and (loaded.basis.dim, loaded.basis.mask_size) == (6, 8)
    assert loaded.sigmoid and loaded.whiten is False
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name].shape for name in file.files if name != "provenance"}
    expected = {"components_c": (1, 6, 64), "mean_c": (1, 64), "explained_variance_c": (1, 6), "ratio_c": (1, 6)}
    assert found == expected


def test_a_file_of_the_published_tool_loads() -> None:
    loaded = load_components(ROOT / "tests/parity/components_60.npz")
    assert (loaded.basis.dim, loaded.basis.mask_size) == (60, 28) and loaded.sigmoid and loaded.whiten is None


def test_published_files_of_other_kinds_load(real_data: Path) -> None:
    folder = real_data.parent / "parity"
    if not folder.is_dir():
        pytest.skip(f"no published component files at {folder}")
    assert load_components(folder / "components_20.npz").basis.dim == 20
    assert not load_components(folder / "components_sigmoidFalse_60.npz").sigmoid


def arrays_of(basis) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    return {
        "components_c": basis.components[None].astype(np.float32),
        "mean_c": basis.mean[None].astype(np.float32),
        "explained_variance_c": basis.explained_variance[None].astype(np.float32),
        "ratio_c": basis.explained_variance_ratio[None].astype(np.float32),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("mean_c"), "lacks mean_c"),
        (lambda a: a.update(mean_c=a["mean_c"][:, :-1]), r"mean_c has shape \(1, 63\) instead of \(1, 64\)"),
        (lambda a: a.update(components_c=a["components_c"][0]), r"instead of \(C, D, S\*S\)"),
        (lambda a: a.update(components_c=a["components_c"][:, :, :60]), "60 pixels, which are not a square"),
        (lambda a: a.update(components_c=a["components_c"] * 1.01), "not orthonormal"),
        (lambda a: a["components_c"].__setitem__((0, 0, 0), np.nan), "not finite"),
        (lambda a: a["explained_variance_c"].__setitem__((0, 2), 0), "variances must be positive"),
        (lambda a: a.update(mean_c=np.zeros((1, 64), int)), "dtype int64 instead of float32"),
        (lambda a: a.update(provenance=np.array("{")), "provenance is not JSON"),
        (lambda a: a.update(provenance=np.array("[1]")), "provenance is not a JSON object"),
    ],
)
def test_broken_files_are_refused_with_a_reason(tmp_path: Path, basis, change, message: str) -> None:  # type: ignore[no-untyped-def]
    arrays = arrays_of(basis)
    change(arrays)
    path = tmp_path / "broken.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_components(path)
    assert "meinst fit" in str(error.value)


def test_object_arrays_are_never_unpickled(tmp_path: Path, basis) -> None:  # type: ignore[no-untyped-def]
    marker = tmp_path / "marker"

    class Canary:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (marker,)

    np.savez(tmp_path / "evil.npz", **(arrays_of(basis) | {"mean_c": np.array([Canary()], object)}))
    with pytest.raises(ValueError, match="holds no usable components"):
        load_components(tmp_path / "evil.npz")
    assert not marker.exists()


def test_no_file_and_no_archive(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"meinst fit --output .*absent.npz"):
        load_components(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("components")
    with pytest.raises(ValueError, match="holds no usable components"):
        load_components(tmp_path / "text.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, basis, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "c.npz"
    save_components(path, [basis], {})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_components(path, [basis], {"unserialisable": object()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]
