"""What will go wrong or hurt when a COCO file is trained on, said before any training.

Every rule stands beside the function that finds it: in ``annotation_rules``, ``image_rules`` and ``coverage``.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Sequence
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
    """A kind of problem, and how it is found.

    Attributes:
        key, title: short name, and what it is, of several.
        severity: how bad one of them is.
        effect: what training does with it.
        fix: empty where nothing needs to be done.
        find: the function that finds it.
        special: what is special about the finding in a dataset: other values of :class:`Finding`.
        bit: in the flags of annotations or images; each list of rules counts its own.
    """

    key: str
    severity: Severity
    title: str
    effect: str
    fix: str
    find: Callable[..., Any]
    special: Callable[[Report, Finding], dict[str, Any]] | None = None
    bit: int = 0


def add_rule(rules: list[Rule], *values: Any) -> Rule:
    """A rule with the next bit, which joins the list."""
    rules.append(Rule(*values, bit=1 << len(rules)))
    return rules[-1]


def bits(*rules: Rule | None) -> int:
    """The flags of any of the rules."""
    return sum({rule.bit for rule in rules if rule is not None})


@dataclass(frozen=True)
class Finding:
    """What a rule found in this dataset.

    Attributes:
        rule: it.
        count: of what it found; 0 where that says nothing.
        examples: the first of them.
        severity, effect, fix: the rule's, unless something is special here.
        note: what is special; may be empty.
    """

    rule: Rule
    count: int
    examples: list[str]
    severity: Severity
    effect: str
    fix: str
    note: str = ""


@dataclass
class Report:
    """What was found out about a dataset.

    Attributes:
        file, coverage: what it holds, and how objects spread over the feature levels.
        encodings: how well masks can be encoded, where that was asked.
        folder, decoded: of the images, where they were looked at; whether their pixels were read, not only headers.
        findings: the worst first.
    """

    file: CocoFile
    coverage: Coverage
    encodings: Encodings | None = None
    folder: str | os.PathLike[str] | None = None
    decoded: bool = False
    findings: list[Finding] = field(default_factory=list)

    @property
    def severity(self) -> Severity:
        """Of the worst finding; the exit status of the command."""
        return max((finding.severity for finding in self.findings), default=FINE)


def flag_in_shards(
    flags: Flags, find: Callable[..., Flags], *args: Any, workers: int, title: str, unit: str, chunk: int
) -> None:
    """Add what ``find(rows, *args)`` finds in every chunk of rows to their flags."""
    shards = run_shards(_find_in_shard, range(len(flags)), workers, title, find, *args, chunk=chunk, unit=unit)
    for start, found in (part for shard in shards for part in shard):
        flags[start : start + len(found)] |= found


def _find_in_shard(chunks: Iterator[Sequence[int]], find: Callable[..., Flags], *args: Any) -> list[tuple[int, Flags]]:
    return [(rows[0] if rows else 0, find(rows, *args)) for rows in chunks]
