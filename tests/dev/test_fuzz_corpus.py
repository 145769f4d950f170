"""Every input that the fuzzers start from, and everything that they found, through the same functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz import fuzz_checkpoint, fuzz_json, fuzz_npz, fuzz_rle
from fuzz.harness import CORPUS, little_memory, with_file
from fuzz.make_seeds import MAKERS

FUZZERS = {"checkpoint": fuzz_checkpoint, "json": fuzz_json, "npz": fuzz_npz, "rle": fuzz_rle}
INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())
LARGEST_INPUT = 4096


@pytest.fixture(scope="module")
def harnesses() -> dict[str, Callable[[bytes], None]]:
    return {name: fuzzer.make_one_input() for name, fuzzer in FUZZERS.items()}


@pytest.mark.filterwarnings("ignore")  # numpy and torch warn of what is odd
@pytest.mark.parametrize("path", INPUTS, ids=[f"{path.parent.name}-{path.name}" for path in INPUTS])
def test_an_input_is_read_or_refused_with_a_sentence(path: Path, harnesses: dict[str, Callable[[bytes], None]]) -> None:
    with little_memory():
        harnesses[path.parent.name](path.read_bytes())


def test_every_fuzzer_has_inputs_and_all_of_them_are_small() -> None:
    assert {path.parent.name for path in INPUTS} == set(FUZZERS)
    assert max(path.stat().st_size for path in INPUTS) < LARGEST_INPUT


@pytest.mark.parametrize("name", list(FUZZERS))
def test_the_seeds_are_those_that_the_tool_writes(name: str) -> None:
    assert {f"seed_{seed}" for seed in MAKERS[name]()} == {path.name for path in (CORPUS / name).glob("seed_*")}


def reader_that_raises(error: Exception) -> Callable[..., None]:
    def read(*_: object) -> None:
        raise error

    return read


@pytest.mark.parametrize("error", [KeyError("images"), MemoryError(), RecursionError()])
def test_an_error_that_no_reader_documents_gets_through(error: Exception) -> None:
    with pytest.raises(type(error)):
        with_file(".json", reader_that_raises(error))(b"{}")


@pytest.mark.parametrize("error", [ValueError("it is cut off"), UnicodeDecodeError("utf-8", b"", 0, 1, "input.json")])
def test_a_sentence_that_names_no_file_is_a_finding(error: Exception) -> None:
    with pytest.raises(AssertionError, match="the error names no file"):
        with_file(".json", reader_that_raises(error))(b"{}")


@pytest.mark.parametrize(
    ("reader", "fuzzer", "seed", "error"),
    [
        ("data.coco.read_coco_json", fuzz_json, "json/seed_polygon", ValueError("no file named")),
        ("checkpoint.readers.read_checkpoint", fuzz_checkpoint, "checkpoint/seed_zip", EOFError()),
        ("encoding.components.load_components", fuzz_npz, "npz/seed_stored", EOFError()),
    ],
)
def test_a_fuzzer_fails_where_the_reader_raises_something_else(
    monkeypatch: pytest.MonkeyPatch, reader: str, fuzzer: Any, seed: str, error: Exception
) -> None:
    monkeypatch.setattr(f"meinst_d2.{reader}", reader_that_raises(error))
    with pytest.raises((AssertionError, EOFError), match="no file named" if error.args else ""):
        fuzzer.make_one_input()((CORPUS / seed).read_bytes())


def test_an_rle_fuzzer_fails_where_two_readings_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from meinst_d2.masks.rle import decode_rle

    monkeypatch.setattr("meinst_d2.masks.rle.decode_rle", lambda *args: 1 - decode_rle(*args))
    with pytest.raises(AssertionError):
        fuzz_rle.make_one_input()((CORPUS / "rle/seed_text").read_bytes())


def test_memory_that_is_gone_is_a_finding() -> None:
    with little_memory(), pytest.raises(MemoryError):
        bytearray(2**33)
    assert len(bytearray(2**20)) == 2**20

    def read(path: str) -> None:
        try:
            bytearray(2**50)
        except MemoryError as error:
            raise ValueError(f"{path} is refused") from error

    with pytest.raises(AssertionError, match="because memory ran out"):
        with_file(".json", read)(b"{}")
