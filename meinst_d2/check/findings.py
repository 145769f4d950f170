"""From flags to what a report says: how many, how bad, the first of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from meinst_d2.check import hints
from meinst_d2.check import image_problems as ip
from meinst_d2.check import problems as p
from meinst_d2.check.coverage import Coverage
from meinst_d2.check.problem import FINE, HURTS, Problem, Severity, bits
from meinst_d2.check.scan import CocoFile

USUAL_LOSS = 0.02
"""Share of objects without a location up to which nothing is wrong: COCO has 1 % at 800 pixels."""
USUAL_LOSS_OF_CLASS = 0.1
FEW = 10
"""Objects below which a class has few."""


@dataclass(frozen=True)
class Finding:
    """A problem of this dataset.

    Attributes:
        problem: its kind.
        severity: how bad it is here.
        count: how many.
        examples: the first of them.
        effect: what training does with them.
        note: what is special here; may be empty.
    """

    problem: Problem
    severity: Severity
    count: int
    examples: list[str]
    effect: str
    note: str = ""


@dataclass
class Context:
    """What the findings are made of.

    Attributes:
        file: scanned and checked.
        coverage: of the feature levels.
        folder: of the images, None where they were not looked at.
        poor_classes: what no encoding redraws well.
        num_examples: the most to give.
    """

    file: CocoFile
    coverage: Coverage
    folder: str | os.PathLike[str] | None = None
    poor_classes: list[str] = field(default_factory=list)
    num_examples: int = 5


def settle_images(file: CocoFile) -> None:
    """Flag images that have no annotations, nothing but crowd, or nothing that can be learned."""
    count = len(file.image_flags)
    known = file.image_rows >= 0

    def per_image(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(file.image_rows[known & chosen], minlength=count)

    accidental = file.having(p.NEGATIVE, p.NO_NUMBERS, p.NOT_FINITE)
    everything, objects = per_image(known), per_image(~file.having(p.CROWD))
    learned = per_image(file.learned | accidental)
    usable = (file.image_flags & np.uint32(bits(ip.IMAGE_NO_OBJECT, ip.IMAGE_KEYS, ip.REPEATED_IMAGE_ID))) == 0
    for problem, found in (
        (ip.NO_ANNOTATIONS, everything == 0),
        (ip.ONLY_CROWD, (everything > 0) & (objects == 0)),
        (ip.EMPTIED, (objects > 0) & (learned == 0)),
    ):
        file.image_flags[usable & found] |= np.uint32(problem.bit)


def find(context: Context) -> list[Finding]:
    """Everything that was found, the worst first."""
    file, most = context.file, context.num_examples
    effects, notes = _effects(context), _notes(context)
    found: list[Finding] = []

    def add(problem: Problem, count: int, examples: list[str]) -> None:
        severity, note = problem.severity, notes.get(problem.key, "")
        if problem in (p.NO_CELL, p.OUTDONE):
            severity, note = _loss(context, problem)
        effect = effects.get(problem.key, problem.effect)
        found.append(Finding(problem, severity, count, examples[:most], effect, note))

    for problem, examples in file.general.items():
        add(problem, len(examples), examples)
    for problem in ip.IMAGE_PROBLEMS:
        rows = np.flatnonzero(file.image_flags & np.uint32(problem.bit))
        if len(rows):
            add(problem, len(rows), [image_text(file, row) for row in rows[:most].tolist()])
    for problem in p.ANNOTATION_PROBLEMS:
        rows = np.flatnonzero(file.having(problem))
        if len(rows):
            add(problem, len(rows), [annotation_text(file, row) for row in rows[:most].tolist()])
    for problem, classes in _classes(context).items():
        if classes:
            add(problem, len(classes), classes)
    if len(file.image_flags) and not file.learned.any():
        add(ip.NOTHING_TO_LEARN, 0, [])
    return sorted(found, key=lambda finding: -finding.severity)


def image_text(file: CocoFile, row: int) -> str:
    """An image for a reader."""
    name = file.names[row]
    return f"image {file.image_ids[row]!r}" + (f" ({name})" if name else "")


def annotation_text(file: CocoFile, row: int) -> str:
    """An annotation for a reader."""
    id_ = file.annotation_ids[row]
    text = f"annotation {id_!r}" if id_ is not None else f"number {row} of 'annotations'"
    image = int(file.image_rows[row])
    return text + (f" of {file.names[image] or image_text(file, image)}" if image >= 0 else "")


def class_counts(file: CocoFile) -> npt.NDArray[np.int64]:
    """(K,) objects to learn of every class."""
    return np.bincount(file.annotations.categories[file.learned], minlength=len(file.classes))[: len(file.classes)]


def _classes(context: Context) -> dict[Problem, list[str]]:
    counts = class_counts(context.file).tolist()
    named = list(zip(context.file.classes, counts, strict=True))
    return {
        ip.NO_INSTANCES: [name for name, count in named if count == 0],
        ip.FEW_INSTANCES: [f"{name} ({count})" for name, count in named if 0 < count < FEW],
        ip.POORLY_REDRAWN: context.poor_classes,
    }


def _effects(context: Context) -> Mapping[str, str]:
    if context.coverage.settings.filter_empty:
        without = "leaves them out (DATALOADER.FILTER_EMPTY_ANNOTATIONS is True)"
    else:
        without = "teaches them as background (DATALOADER.FILTER_EMPTY_ANNOTATIONS is False)"
    effects = {ip.NO_ANNOTATIONS.key: without, ip.ONLY_CROWD.key: without}
    if not context.coverage.settings.filter_empty or (~context.file.having(p.CROWD)).any():
        effects[ip.NOTHING_TO_LEARN.key] = "has nothing to learn but background"
    return effects


def _notes(context: Context) -> Mapping[str, str]:
    file = context.file
    notes = {
        p.MISMATCH.key: hints.box_format(file),
        p.BAD_RLE.key: hints.rle_size(file),
        ip.MISSING.key: hints.missing_names(file, context.folder) if context.folder is not None else "",
    }
    if context.coverage.settings.filter_empty:
        empty = np.uint32(bits(ip.NO_ANNOTATIONS, ip.ONLY_CROWD))
        for problem in (ip.MISSING, ip.UNREADABLE, ip.OTHER_SIZE):
            having = (file.image_flags & np.uint32(problem.bit)) != 0
            unused = int((having & ((file.image_flags & empty) != 0)).sum())
            if unused:
                text = f"{unused:,} of them have no objects: training never opens those, evaluation does"
                notes[problem.key] = "; ".join(filter(None, (notes.get(problem.key, ""), text)))
    return notes


def _loss(context: Context, problem: Problem) -> tuple[Severity, str]:
    file = context.file
    lost, counts = file.having(problem) & file.learned, class_counts(file)
    share = lost.sum() / max(1, context.coverage.objects)
    per_class = np.bincount(file.annotations.categories[lost], minlength=len(counts))[: len(counts)]
    much = [
        f"{100 * part / count:.0f} % of {name}"
        for name, part, count in zip(file.classes, per_class.tolist(), counts.tolist(), strict=True)
        if count >= FEW and part > USUAL_LOSS_OF_CLASS * count
    ]
    note = f"{100 * share:.1f} % of the objects" + (f"; {', '.join(much)}" if much else "")
    return (HURTS if share > USUAL_LOSS or much else FINE), note
