"""What torch.save writes of weights and what belongs to them is read, and stays what it was."""

import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.checkpoint.readers import load_tensor_file

OWN_STORAGE = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
OWN_STORAGE += ("complex64", "complex128")
STORED_AS_BYTES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "complex32")
"""torch.save writes them in archives; what it makes of them before, torch.load does not read."""


def bytes_of(tensor: torch.Tensor) -> list[int]:
    storage: list[int] = tensor.detach().contiguous().clone().untyped_storage().tolist()
    return storage


def same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        equal = first.dtype == second.dtype and first.shape == second.shape and first.stride() == second.stride()
        return equal and bytes_of(first) == bytes_of(second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and bool(first == second)


def saved(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def numbers(dtype: str) -> torch.Tensor:
    return torch.arange(48, dtype=torch.uint8).remainder(2).view(getattr(torch, dtype))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", OWN_STORAGE)
def test_a_tensor_of_any_type_is_read(tmp_path: Path, dtype: str, zipped: bool) -> None:
    content = {"a": numbers(dtype)}
    assert same(load_tensor_file(saved(tmp_path / "w.pth", content, zipped)), content)


@pytest.mark.parametrize("dtype", STORED_AS_BYTES)
def test_a_tensor_without_a_storage_of_its_own_kind_is_read(tmp_path: Path, dtype: str) -> None:
    content = {"a": numbers(dtype)}
    try:
        path = saved(tmp_path / "w.pth", content)
    except KeyError:
        pytest.skip(f"torch {torch.__version__} cannot save {dtype}")
    assert same(load_tensor_file(path), content)


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
    "conjugates": lambda base: torch.complex(base, base).conj().resolve_conj(),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", CONTENTS)
def test_what_training_saves_is_read(tmp_path: Path, name: str, zipped: bool) -> None:
    content = {"model": CONTENTS[name](torch.arange(20.0).reshape(5, 4))}
    path = saved(tmp_path / "w.pth", content, zipped)
    if name == "rare values":
        try:
            torch.load(path, weights_only=True)
        except pickle.UnpicklingError:
            pytest.skip(f"torch {torch.__version__} does not take them for safe")
    assert same(load_tensor_file(path), content)


@pytest.mark.parametrize("zipped", [True, False])
def test_views_of_one_storage_stay_so(tmp_path: Path, zipped: bool) -> None:
    base = torch.zeros(5, 4)
    loaded = load_tensor_file(saved(tmp_path / "w.pth", {"whole": base, "row": base[2]}, zipped))
    loaded["whole"][2] = 7
    assert loaded["row"].tolist() == [7] * 4


@settings(max_examples=60, deadline=None)
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    ),
    shape=st.lists(st.integers(0, 4), max_size=4),
    zipped=st.booleans(),
)
def test_any_plain_content_is_read(
    tmp_path_factory: pytest.TempPathFactory, content: Any, shape: list[int], zipped: bool
) -> None:
    whole = {"tensor": torch.ones(shape), "content": content}
    path = saved(tmp_path_factory.getbasetemp() / "w.pth", whole, zipped)
    assert same(load_tensor_file(path), whole)
