"""The ids of a section: a long array where they are whole numbers, as they nearly always are."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import numpy.typing as npt

LIMIT = 2**63


class Ids:
    """Ids by row. None, and what cannot be a key, equals nothing."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._others: dict[int, Any] = {}  # by row

    def append(self, value: Any) -> None:
        """Add the id of the next row."""
        if isinstance(value, (int, float)) and -LIMIT <= value < LIMIT and value == int(value):
            self._numbers.append(int(value))  # to a dict, 1.0 and 1 are one key
        else:
            self._others[len(self._numbers)] = value if isinstance(value, str | int | float) else None
            self._numbers.append(0)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, row: int) -> Any:
        return self._others.get(row, self._numbers[row])

    @property
    def mixed(self) -> bool:
        """Whether they cannot be sorted."""
        kinds = {type(value) is str for value in self._others.values() if value is not None}
        return len(kinds) > 1 or (kinds == {True} and len(self._others) < len(self))

    def numbers(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The rows whose ids are whole numbers, and those."""
        numbers = np.array(self._numbers, np.int64)
        if not self._others:
            return np.arange(len(numbers)), numbers
        rows = np.setdiff1d(np.arange(len(numbers)), np.array(list(self._others), np.int64))
        return rows, numbers[rows]

    def repeats(self, earlier: bool = True) -> npt.NDArray[np.bool_]:
        """(n,) whether an earlier row has the id; with ``earlier`` False, whether a later one has."""
        found = np.zeros(len(self), bool)
        rows, numbers = self.numbers()
        order = numbers.argsort(kind="stable")
        same = np.diff(numbers[order]) == 0
        found[rows[order[1:] if earlier else order[:-1]][same]] = True
        seen: set[Any] = set()
        for row in sorted(self._others, reverse=not earlier):
            value = self._others[row]
            found[row] = value is not None and value in seen
            seen.add(value)
        return found

    def find(self, wanted: Ids) -> npt.NDArray[np.int64]:
        """(len(wanted),) the last row here with each of the ids; -1 where there is none."""
        found = np.full(len(wanted), -1, np.int64)
        rows, numbers = self.numbers()
        order = numbers.argsort(kind="stable")
        wanted_rows, wanted_numbers = wanted.numbers()
        if len(rows):
            at = numbers[order].searchsorted(wanted_numbers, side="right") - 1
            at = order[at.clip(min=0)]
            equal = numbers[at] == wanted_numbers
            found[wanted_rows[equal]] = rows[at[equal]]
        by_value = {value: row for row, value in sorted(self._others.items()) if value is not None}
        for row, value in wanted._others.items():
            found[row] = by_value.get(value, -1) if value is not None else -1
        return found
