import pytest

from meinst_d2.check.ids import Ids


def ids_of(*values: object) -> Ids:
    ids = Ids()
    for value in values:
        ids.append(value)
    return ids


def test_rows_are_found_as_a_dict_finds_them() -> None:
    values = [5, "a", 2**70, 5, 1.0, "a", 2.5, None, [3], True]
    wanted = [5, "a", 2**70, 1, 2.5, None, 7, "b", 0]
    as_dict = {value: row for row, value in enumerate(values) if not isinstance(value, list) and value is not None}
    expected = [as_dict.get(value, -1) for value in wanted]
    assert ids_of(*values).find(ids_of(*wanted)).tolist() == expected


def test_repeats() -> None:
    ids = ids_of(3, "a", 3, "b", "a", None, None, 3.0)
    assert ids.repeats().tolist() == [False, False, True, False, True, False, False, True]
    assert ids.repeats(earlier=False).tolist() == [True, True, True, False, False, False, False, False]


def test_none() -> None:
    assert ids_of().repeats().tolist() == [] and ids_of().find(ids_of(1)).tolist() == [-1]
    assert ids_of(1).find(ids_of()).tolist() == []


def test_values_come_back() -> None:
    ids = ids_of(3, "a", None, 2**80)
    assert [ids[row] for row in range(len(ids))] == [3, "a", None, 2**80]


@pytest.mark.parametrize(("values", "mixed"), [((1, 2.5), False), (("a", "b"), False), ((1, "a"), True), ((), False)])
def test_ids_that_do_not_sort(values: tuple[object, ...], mixed: bool) -> None:
    assert ids_of(*values).mixed is mixed
