"""Every malformed file is met with the sentence that the documentation promises, and nothing is written."""

from pathlib import Path

import pytest

from tests.bad_input.case import call_of
from tests.bad_input.page import CASES, GROUPS, PAGE, as_markdown, cell_of, read_page


@pytest.mark.parametrize("key", CASES, ids=": ".join)
def test_what_a_user_gets(key: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raised, said, before, after = call_of(CASES[key], tmp_path)
    assert after == before
    assert raised == CASES[key].error
    assert cell_of(CASES[key], said) == read_page()[key]


def test_the_page_has_every_case_once_and_no_other_row() -> None:
    assert len(CASES) == sum(map(len, GROUPS.values())) >= 35
    assert read_page().keys() == CASES.keys(), "run python -m tests.bad_input"
    assert PAGE.read_text() == as_markdown(read_page()), "run python -m tests.bad_input"
