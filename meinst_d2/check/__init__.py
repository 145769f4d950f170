"""What will go wrong or hurt when a COCO file is trained on, said before any training.

Every rule stands beside the function that finds it: in ``annotation_rules``, ``image_rules`` and ``coverage``.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meinst_d2.data.parallel import run_shards

if TYPE_CHECKING:
    from meinst_d2.check.coco_file import CocoFile
    from meinst_d2.check.coverage import Coverage
    from meinst_d2.check.encodings import Encodings

Flags = npt.NDArray[np.uint32]
DROP = "--drop-bad leaves them out"


class Severity(enum.IntEnum):
    """How bad it is; also the exit status of the command."""

    FINE = 0
    HURTS = 1
    STOPS = 2


STOPS, HURTS, FINE = Severity.STOPS, Severity.HURTS, Severity.FINE


@dataclass(frozen=True)
class Rule:
    """A kind of problem, and how it is found."""

    key: str  # short name, in reports
    severity: Severity  # of one of them
    title: str  # what it is, of several
    effect: str  # what training does with it
    fix: str  # empty where nothing needs to be done
    find: Callable[..., Any]  # the function that finds it
    special: Callable[[Report, Finding], dict[str, Any]] | None = None  # what a Finding has instead, in a dataset
    bit: int = 0  # in the flags of annotations or images; each list of rules counts its own


def add_rule(rules: list[Rule], *values: Any) -> Rule:
    """A rule with the next bit, which joins the list."""
    rules.append(Rule(*values, bit=1 << len(rules)))
    return rules[-1]


def bits(*rules: Rule | None) -> int:
    """The flags of any of the rules."""
    return sum({rule.bit for rule in rules if rule is not None})


@dataclass(frozen=True)
class Finding:
    """What a rule found in this dataset; severity, effect and fix are the rule's, unless something is special here."""

    rule: Rule
    count: int  # 0 where that says nothing
    examples: list[str]  # the first
    severity: Severity
    effect: str
    fix: str
    note: str = ""  # what is special


@dataclass
class Report:
    """What was found out about a dataset."""

    file: CocoFile
    coverage: Coverage
    encodings: Encodings | None = None  # where they were asked for
    folder: str | os.PathLike[str] | None = None  # of the images, where they were looked at
    decoded: bool = False  # whether their pixels were read, not only their headers
    findings: list[Finding] = field(default_factory=list)  # the worst first

    @property
    def severity(self) -> Severity:
        """Severity of the worst finding; the exit status of the command."""
        return max((finding.severity for finding in self.findings), default=FINE)


def in_chunks(
    find: Callable[..., Any], count: int, *args: Any, workers: int, title: str, unit: str, chunk: int
) -> list[tuple[range, Any]]:
    """Every chunk of that many rows with what ``find(rows, *args)`` finds in it, in so many processes."""
    shards = run_shards(_in_shard, range(count), workers, title, find, *args, chunk=chunk, unit=unit)
    return [found for shard in shards for found in shard]


def _in_shard(chunks: Iterator[range], find: Callable[..., Any], *args: Any) -> list[tuple[range, Any]]:
    return [(rows, find(rows, *args)) for rows in chunks]
