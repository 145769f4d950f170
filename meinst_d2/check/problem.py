"""What a problem is."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.IntEnum):
    """How bad it is; also the exit status of the command."""

    FINE = 0
    HURTS = 1
    STOPS = 2


@dataclass(frozen=True)
class Problem:
    """A kind of problem.

    Attributes:
        key: short name, in reports.
        severity: how bad one of them is.
        title: what it is, of several.
        effect: what training does with it.
        remedy: the way out; empty where nothing needs to be done.
        bit: in the flags of annotations or images; 0 for the others.
    """

    key: str
    severity: Severity
    title: str
    effect: str
    remedy: str = ""
    bit: int = 0


def numbered(
    problems: list[Problem], key: str, severity: Severity, title: str, effect: str, remedy: str = ""
) -> Problem:
    """A problem with the next bit, which joins the list."""
    problem = Problem(key, severity, title, effect, remedy, 1 << len(problems))
    problems.append(problem)
    return problem


def bits(*problems: Problem) -> int:
    """The flags of any of the problems."""
    return sum({problem.bit for problem in problems})


STOPS, HURTS, FINE = Severity.STOPS, Severity.HURTS, Severity.FINE
DROP = "--drop-bad leaves them out"
