"""How well encodings redraw each class of a dataset, so that S and D can be chosen before training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from meinst_d2.check import problems as p
from meinst_d2.check.scan import CocoFile
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.encoding import Components
from meinst_d2.reconstruction.encodings import Encoding, FittedDictionaries, make_encodings
from meinst_d2.reconstruction.measure import measure_encodings
from meinst_d2.reconstruction.report import Row, class_table, rows_of

HELD_OUT_SHARE = 5
"""One of so many masks of a class is measured, the others are fitted to."""
MOST_PER_CLASS = 200
"""Masks of a class that are measured."""
MOST_FITTED = 50_000
"""Masks that dictionaries are fitted to: enough to compare them."""
FEWEST = 5
"""Measured masks of a class below which its mean says little."""
POOR_IOU = 0.75


class Rows(Sequence[InstanceAnnotation]):
    """Some rows of a table, made when they are asked for."""

    def __init__(self, file: CocoFile, rows: npt.NDArray[np.int64]) -> None:
        self._table, self._rows = file.annotations, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[InstanceAnnotation]:
        return (self._table[row] for row in self._rows.tolist())

    @overload
    def __getitem__(self, index: int) -> InstanceAnnotation: ...

    @overload
    def __getitem__(self, index: slice) -> list[InstanceAnnotation]: ...

    def __getitem__(self, index: int | slice) -> InstanceAnnotation | list[InstanceAnnotation]:
        if isinstance(index, slice):
            return [self._table[row] for row in self._rows[index].tolist()]
        return self._table[int(self._rows[index])]


@dataclass(frozen=True)
class Encodings:
    """What was measured.

    Attributes:
        rows: one per encoding.
        classes: names.
        fitted_to: masks that the dictionary was fitted to; 0 where it came from a file.
        measured: masks that were redrawn, none of which was fitted to.
        left_out: why pairs of S and D are missing.
    """

    rows: list[Row]
    classes: list[str]
    fitted_to: int
    measured: int
    left_out: list[str]

    def table(self) -> str:
        """Mean IoU of every class at the objects' own resolution, and of all masks."""
        if not self.rows:
            return ""
        width = max(len(name) for name, q in zip(self.classes, self.rows[0].by_class, strict=True) if q.count)
        values = " ".join(f"{row.total.iou:>{max(6, len(row.title))}.4f}" for row in self.rows)
        return f"{class_table(self.rows, self.classes)}\n{'all':{width}} {self.measured:>6,} {values}"

    def poor_classes(self) -> list[str]:
        """Classes that every encoding redraws with a mean IoU below 0.75, and the best of them."""
        found = []
        for k, name in enumerate(self.classes):
            if self.rows and self.rows[0].by_class[k].count >= FEWEST:
                best = max(self.rows, key=lambda row: row.by_class[k].iou)
                if best.by_class[k].iou < POOR_IOU:
                    found.append(f"{name} ({best.by_class[k].iou:.2f} at best, with {best.title})")
        return found


def held_out(file: CocoFile) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows to fit to and those to measure: of each class a fifth, 200 at most, all evenly spaced."""
    usable = np.flatnonzero(file.learned & ~file.having(p.EMPTY) & (_sizes_of(file).min(axis=1) > 0))
    categories = file.annotations.categories[usable]
    measured = []
    for category in np.unique(categories):
        rows = usable[categories == category]
        count = min(MOST_PER_CLASS, -(-len(rows) // HELD_OUT_SHARE))
        measured.append(rows[(np.arange(count) * len(rows)) // count])
    chosen = np.sort(np.concatenate(measured)) if measured else np.zeros(0, np.int64)
    others = np.setdiff1d(usable, chosen)
    count = min(MOST_FITTED, len(others))
    return others[np.arange(count) * len(others) // max(1, count)], chosen


def _sizes_of(file: CocoFile) -> npt.NDArray[np.int64]:
    sizes = np.zeros((len(file.annotations), 2), np.int64)
    known = file.image_rows >= 0
    sizes[known] = file.sizes[file.image_rows[known]]
    return sizes


def measure_classes(
    file: CocoFile, pairs: Sequence[tuple[int, int]], components: Components | None = None, workers: int = 1
) -> Encodings:
    """Redraw masks of every class with several encodings.

    Args:
        file: scanned and checked.
        pairs: (S, D) to fit, to masks that are not measured.
        components: measured instead; all its components and, of one dictionary, the D of ``pairs`` that it has.
        workers: processes.

    Raises:
        ValueError: the components are for another number of classes.
    """
    fit_rows, rows = held_out(file)
    left_out: list[str] = []
    if not len(rows):
        return Encodings([], file.classes, 0, 0, ["there is no usable mask"])
    if components is not None:
        fit_rows = fit_rows[:0]
        encodings = list(_of_components(components, pairs, len(file.classes)))
    else:
        encodings = list(_fitted(Rows(file, fit_rows), pairs, len(file.classes), left_out, workers))
    if not encodings:
        return Encodings([], file.classes, len(fit_rows), 0, left_out)
    tally = measure_encodings(Rows(file, rows), encodings, len(file.classes), workers)
    found = rows_of(tally, encodings, len(file.classes))
    return Encodings(found, file.classes, len(fit_rows), found[0].total.count, left_out)


def _fitted(
    annotations: Rows, pairs: Sequence[tuple[int, int]], num_classes: int, left_out: list[str], workers: int
) -> Iterator[Encoding]:
    dims = [dim for _, dim in pairs]
    dictionaries = FittedDictionaries(annotations, num_classes, dims, per_class=False, workers=workers)
    for size, dim in pairs:
        try:
            if not len(annotations):
                raise ValueError("there are too few masks to fit to some and measure others")
            yield from make_encodings("pca", [size], [dim], bases=dictionaries.bases)
        except ValueError as error:
            left_out.append(f"{size}/{dim}: {error}")


def _of_components(components: Components, pairs: Sequence[tuple[int, int]], num_classes: int) -> Iterator[Encoding]:
    bases = components.bases
    if len(bases) not in (1, num_classes):
        raise ValueError(f"the components are for {len(bases)} classes, the annotations have {num_classes}")
    family = "pca" if len(bases) == 1 else "class-pca"
    size, longest = bases[0].mask_size, bases[0].dim
    dims = sorted({dim for s, dim in pairs if s == size and dim < longest} | {longest})
    yield from make_encodings(family, [size], dims, [components.sigmoid], bases=bases)
