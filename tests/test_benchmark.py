"""The machinery of the benchmarks: turns, ratios, tables, JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import Goal, Row, Side, alternate, print_table, write_json
from benchmarks.source import find_source
from tests.conftest import ROOT


def test_sides_take_turns_after_a_warm_up() -> None:
    calls = []
    sides = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, at_least=0)
    assert calls == ["a", "a", "b", "b", *"ababab"]  # the first two of each are the warm-up and the estimate
    assert [len(side.samples) for side in sides.values()] == [3, 3]


def test_ratios_are_taken_round_by_round() -> None:
    row = Row("x", Side("new", [1.0, 2.0, 4.0]), Side("old", [10.0, 10.0, 12.0]))
    assert row.ratios == [10, 5, 3] and row.ratio == 5


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row("x", Side("new", [1.0, 2.0, 3.0]), Side("old", [10.0, 10.0, 12.0]), "s", Goal(">= 9x", False), {"n": 3}),
        Row("alone", Side("new", [7.0])),
    ]
    print_table("title", rows)
    printed = capsys.readouterr().out
    assert "| new 2 s (1 to 3) | old 10 s (10 to 12) | 5 (4 to 10) | >= 9x: NO |" in printed
    assert "x: n 3" in printed and "new 7 ms" in printed
    write_json(tmp_path / "a.json", {"cpu": "any"}, {"title": rows})
    first, second = json.loads((tmp_path / "a.json").read_text())["tables"]["title"]
    assert first["ratio"] == 5 and first["ours"] == {"name": "new", "median": 2, "samples": [1, 2, 3]}
    assert first["goal"] == {"text": ">= 9x", "met": False} and second["ratio"] is None and "baseline" not in second


def test_data_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give --data a folder with coco/"):
        find_source(tmp_path)


def test_help_does_not_import_torch() -> None:
    code = "import runpy, sys; sys.argv = ['benchmark.py', '--help']\n"
    code += "try:\n runpy.run_path('tools/benchmark.py', run_name='__main__')\n"
    code += "finally:\n print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "examples:" in result.stdout and result.stdout.endswith("False\n")
