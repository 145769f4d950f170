from pathlib import Path

import numpy as np
import pytest

from meinst_d2.encoding import PixelMoments, fit_pca, load_components, save_components
from tests.conftest import ROOT, blob_masks


@pytest.fixture(scope="module")
def basis():  # type: ignore[no-untyped-def]
    moments = PixelMoments(8)
    moments.update(blob_masks(np.random.default_rng(0), 400, 8))
    return fit_pca(moments).truncated(6)


def test_round_trip_keeps_arrays_and_provenance(tmp_path: Path, basis) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "new" / "c.npz"
    save_components(path, [basis], {"datasets": ["x"], "sigmoid": True, "whiten": False})
    loaded = load_components(path)
    np.testing.assert_array_equal(loaded.basis.components, basis.components.astype(np.float32))
    assert loaded.basis.components.dtype == np.float32 and (loaded.basis.dim, loaded.basis.mask_size) == (6, 8)
    assert loaded.sigmoid and loaded.whiten is False
    with np.load(path, allow_pickle=False) as file:
        assert {name: file[name].shape for name in file.files if name != "provenance"} == {
            "components_c": (1, 6, 64),
            "mean_c": (1, 64),
            "explained_variance_c": (1, 6),
            "ratio_c": (1, 6),
        }


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
