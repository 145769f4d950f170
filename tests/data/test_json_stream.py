"""Streaming gives what json.loads gives, whatever the portions in which the file is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.data import json_stream
from meinst_d2.data.json_stream import iterate_json

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(scalars, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=4), x, max_size=4))
objects = st.dictionaries(st.text(max_size=4), values, max_size=5)


def read(path: Path, chunk: int) -> dict[str, Any]:
    """What was streamed, put together again."""
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        for section, index, value in iterate_json(path):
            if index is None:
                found[section] = value
            else:
                assert index == len(found[section])
                found[section].append(value)
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "a.json"


@settings(max_examples=150, deadline=None)
@given(
    content=objects, chunk=st.sampled_from((1, 2, 7, 2**20)), indent=st.sampled_from((None, 2)), ascii_=st.booleans()
)
def test_everything_comes_in_order(path: Path, content: Any, chunk: int, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=ascii_)
    path.write_bytes(text.encode("utf-8", "surrogatepass" if ascii_ else "strict"))
    assert read(path, chunk) == content


@pytest.mark.parametrize("chunk", [1, 5, 2**20])
def test_a_file_that_is_cut_off_is_refused_wherever(path: Path, chunk: int) -> None:
    text = '{"a": [1, 2.5, {"b": "c"}], "d": 12, "e": "f"}'
    for end in range(len(text)):
        path.write_text(text[:end])
        with pytest.raises(ValueError, match=r"a\.json is not readable JSON"):
            read(path, chunk)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [1, ' + "9" * 5000 + "]}", "it has a number of too many digits"),
        ('{"a": 1,}', "Expecting value at character 8"),
        ('{"a" 1}', "':' is missing at character 5"),
        ('{"a": [1 2]}', "',' is missing at character 9"),
        ('{"a": [1, }', "Expecting value at character 10"),
        ('{"a": 1} x', "something follows the end at character 9"),
        ('{"a": 1, "a": 2}', "the key 'a' is no text or comes twice"),
        ("{1: 2}", "the key 1 is no text"),
        ('{"a": ' + "[" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read(path, 64)


def test_bytes_that_are_no_text(path: Path) -> None:
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match="it is not UTF-8"):
        read(path, 64)


def test_a_byte_order_mark_is_no_part_of_it(path: Path) -> None:
    path.write_text('{"a": [1]}', encoding="utf-8-sig")
    assert read(path, 64) == {"a": [1]}
