import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meinst_d2.checkpoint.readers import (
    load_array_pickle,
    load_tensor_file,
    read_checkpoint,
    save_safetensors,
    weights_to_use,
)


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


DANGEROUS_NAMES = ("w.pth", "w.pyth", "w.pkl", "w", "w.bin", "w.PKL", "w.pt", "resnet50_lpf.pth", "dla34.pth")


def write_canary(path: Path, marker: Path, zipped: bool = True) -> None:
    content = {"model": Canary(marker), "model_state": Canary(marker), "__author__": "me"}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", DANGEROUS_NAMES)
def test_no_file_runs_code(tmp_path: Path, name: str, zipped: bool) -> None:
    write_canary(tmp_path / name, tmp_path / "marker", zipped)
    with pytest.raises(ValueError, match=f"{name} is refused"):
        read_checkpoint(tmp_path / name)
    assert not (tmp_path / "marker").exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    write_canary(tmp_path / "w.safetensors", tmp_path / "marker")
    with pytest.raises(ValueError, match="is refused: it is no whole .safetensors"):
        read_checkpoint(tmp_path / "w.safetensors")
    assert not (tmp_path / "marker").exists()


def test_a_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="must be whole"):
        load_tensor_file(path)
    (tmp_path / "m.pkl").write_bytes(b"\x80\x04")
    with pytest.raises(ValueError, match="is refused"):
        load_array_pickle(tmp_path / "m.pkl")


@pytest.mark.parametrize("name", ["m.pth", "m.pkl", "m.pyth"])
def test_garbage_is_refused_whatever_it_is(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(0)
    good = pickle.dumps({"model": {"a": np.arange(6.0)}})
    for length in (0, 1, 2, 5, 40, 200):
        for content in (rng.bytes(length), good[:length], good[: length // 2] + rng.bytes(length)):
            if content == good:
                continue
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name} (is refused|holds a)"):
                read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    content = {"model": {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(3)}, "__author__": "me"}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    loaded = load_array_pickle(tmp_path / "w.pkl")
    np.testing.assert_array_equal(loaded["model"]["a"], content["model"]["a"])
    assert loaded["model"]["b"] == 3


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_bare_state_dict_is_the_model(tmp_path: Path, wrapped: bool, zipped: bool, mmap: bool) -> None:
    state = {"a": torch.arange(3)}
    path = tmp_path / "w.pth"
    torch.save({"model": state, "iteration": 5} if wrapped else state, path, _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(path, mmap)
    assert torch.equal(content["model"]["a"], state["a"]) and set(content) == {"model", *(("iteration",) * wrapped)}


@pytest.mark.parametrize("average", [None, {}, {"decay": 0.9}, {"model": None}, [1], 0.9])
def test_an_average_that_holds_no_weights_is_none(average: Any) -> None:
    model, averaged = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    assert weights_to_use({"model": model, "ema": average}) is model
    assert weights_to_use({"model": model, "ema": {"model": averaged}}) is averaged


@pytest.mark.parametrize(("content", "kind"), [([1], "list"), ({"model": [1]}, "list"), (torch.zeros(1), "Tensor")])
def test_what_is_no_state_dict_is_named(tmp_path: Path, content: Any, kind: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"w.pth holds a {kind} instead of weights by name"):
        read_checkpoint(tmp_path / "w.pth")


def test_safetensors_keep_weights_and_what_is_said_about_them(tmp_path: Path) -> None:
    state = {"a": torch.randn(2, 3).T, "b": torch.arange(4)}
    save_safetensors(tmp_path / "w.safetensors", state, {"class_names": ["x"], "sigmoid": True})
    content = read_checkpoint(tmp_path / "w.safetensors")
    assert content["meinst"] == {"class_names": ["x"], "sigmoid": True}
    assert all(torch.equal(content["model"][name], value) for name, value in state.items())
    with pytest.raises(FileNotFoundError, match="no file .*absent.safetensors"):
        read_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("shape", [[0, 2**63], [2**63, 2], [2**62, 4], [-1], [1.5], "2", [0]])
def test_safetensors_of_another_shape_than_their_bytes_are_refused(tmp_path: Path, shape: Any) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="w.safetensors is refused: it is no whole .safetensors file"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_an_empty_tensor_of_safetensors_with_a_side_that_torch_has_not_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="w.safetensors is refused: it is no whole .safetensors file"):
        read_checkpoint(tmp_path / "w.safetensors")


def test_without_safetensors_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="w.safetensors needs the package safetensors: run pip install safetensors"):
        read_checkpoint(tmp_path / "w.safetensors")
