"""The sums of dev/soak.py and the table of dev/matrix.py."""

from pathlib import Path

import matrix
import pytest
from soaking.load import Usage
from soaking.resume import _what_was_going_on
from soaking.run import iterations_lost, losses_by_iteration


def test_memory_and_files_are_sampled_and_their_drift_found(tmp_path: Path) -> None:
    growing_at_first = Usage(
        "x", "y", list(range(10)), [50, 80, 90, 100, 100, 100, 100, 100, 102, 102], [3] * 10, [1] * 10
    )
    assert growing_at_first.drift == pytest.approx(0.02) and growing_at_first.left_behind == (0, 0)
    coming_and_going = Usage("x", "y", list(range(10)), [1.0] * 10, [22, 22, 19, 19, 22, 22, 22, 22, 19, 22], [1] * 10)
    assert coming_and_going.left_behind == (0, 0)
    leaking = Usage("x", "y", list(range(10)), [float(100 + i) for i in range(10)], list(range(10)), [0] * 9 + [2])
    assert leaking.drift == pytest.approx(108.5 / 103.5 - 1) and leaking.left_behind == (5, 0)
    usage = Usage("x", "y")
    usage.sample(1)
    with open(tmp_path / "file", "w"):
        usage.sample(2)
    assert usage.files[1] == usage.files[0] + 1 and usage.megabytes[0] > 10


def test_events_say_what_was_going_on_and_what_was_lost() -> None:
    events = ["start 10", "iteration 10 a", "begin save", "end save"]
    assert _what_was_going_on(events) == "iteration 11"
    assert _what_was_going_on([*events, "begin evaluation"]) == "an evaluation before iteration 11"
    assert (
        _what_was_going_on([*events, "begin evaluation", "begin save"])
        == "writing a file in an evaluation before iteration 11"
    )
    assert _what_was_going_on([*events, "begin save", "start 10"]) == "iteration 10"
    events = ["start 0", "iteration 0 a", "iteration 1 b", "iteration 2 c", "start 2", "iteration 2 c", "start 3"]
    assert iterations_lost(events) == [1, 0]
    assert losses_by_iteration(events) == {0: {"a"}, 1: {"b"}, 2: {"c"}}
    assert losses_by_iteration([*events, "iteration 2 d"])[2] == {"c", "d"}


def test_the_table_of_versions_keeps_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "install.md"
    old, new = matrix.Row("2.4.1", "0.19.1", True), matrix.Row("2.15.0", "0.29.2", False)
    table.write_text(f"before\n\n{matrix.HEADER}{old} 1 failed |\n{new} all |\n\nafter\n")
    monkeypatch.setattr(matrix, "TABLE", table)
    matrix.fill(old, "7 passed")
    matrix.fill(matrix.Row("2.15.0", "0.29.2", True), "8 passed")
    lines = table.read_text().splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    assert lines[4:7] == [f"{new} all |", f"{matrix.Row('2.15.0', '0.29.2', True)} 8 passed |", f"{old} 7 passed |"]
    assert matrix.SUMMARY.search("2224 passed, 3 skipped, 11 warnings in 424.16s (0:07:04)")
    assert matrix.SUMMARY.search("1 failed, 2 passed in 3.00s") and not matrix.SUMMARY.search("passed in the end")
