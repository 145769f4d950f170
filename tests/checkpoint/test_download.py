import hashlib
from pathlib import Path

import pytest

from meinst_d2.checkpoint.checkpointer import fetch
from tests.web import serve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def hashed(folder: Path, content: bytes, digest: str | None = None) -> Path:
    path = folder / f"model-{digest or hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


def test_a_file_is_fetched_once(tmp_path: Path, cache: Path) -> None:
    path = hashed(tmp_path, b"weights")
    with serve(tmp_path) as url:
        local = fetch(f"{url}/{path.name}")
        path.unlink()
        assert fetch(f"{url}/{path.name}") == local
    assert Path(local).read_bytes() == b"weights" and files_in(cache) == [path.name]


def test_names_say_what_a_file_is(tmp_path: Path, cache: Path) -> None:
    path = hashed(tmp_path, b"weights", "00000000")
    with serve(tmp_path) as url, pytest.raises(ValueError, match=r"begins with 00000000, .* was deleted, try again"):
        fetch(f"{url}/{path.name}")
    assert files_in(cache) == []
    with serve(tmp_path) as url:
        for name in ("model_final.pth", "R-50.pkl", "model_0001999.pth", "model-20.pth"):
            (tmp_path / name).write_bytes(b"anything")
            assert Path(fetch(f"{url}/{name}")).read_bytes() == b"anything"


def test_a_failed_download_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "whole.pth").write_bytes(bytes(100_000))
    with serve(tmp_path) as url:
        for address in ("absent.pth", "cut/whole.pth"):
            with pytest.raises(OSError, match=rf"/{address} could not be downloaded: .+"):
                fetch(f"{url}/{address}")
    with pytest.raises(OSError, match=f"{url}/model.pth could not be downloaded"):  # the server has ended
        fetch(f"{url}/model.pth")
    assert files_in(cache) == []
