"""Every malformed file is met with the sentence that the documentation promises, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_input.case import Case, call_of
from tests.bad_input.page import GROUPS, PAGE, as_markdown

CASES = [case for cases in GROUPS.values() for case in cases]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_user_gets(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raised, said, before, after = call_of(case, tmp_path)
    assert after == before
    assert raised == case.error
    if case.error is not None:
        assert said == case.gets


def test_the_table_is_large_enough_and_names_no_case_twice() -> None:
    assert len(CASES) >= 35
    assert len({str(case) + case.gets for case in CASES}) == len(CASES)


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == as_markdown(), "run python -m tests.bad_input"
