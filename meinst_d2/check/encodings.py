"""How well encodings reconstruct each class of a dataset, so that S and D can be chosen before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meinst_d2.check.annotation_rules import EMPTY
from meinst_d2.check.coco_file import CocoFile
from meinst_d2.data.annotations import Selection
from meinst_d2.encoding import Components
from meinst_d2.reconstruction.encodings import FittedDictionaries, encodings_of, make_encodings
from meinst_d2.reconstruction.measure import measure_encodings
from meinst_d2.reconstruction.report import Row, class_table, rows_of

HELD_OUT_SHARE = 5
"""One of so many masks of a class is measured, the others are fitted to."""
MOST_PER_CLASS, MOST_FITTED = 200, 50_000
"""Masks of a class that are measured, and masks that dictionaries are fitted to: enough to compare them."""
FEWEST, POOR_IOU = 5, 0.75
"""Measured masks of a class below which its mean says little, and the mean below which it is poor."""


@dataclass(frozen=True)
class Encodings:
    """What was measured."""

    rows: list[Row]  # one per encoding
    classes: list[str]
    fitted_to: int  # masks that the dictionary was fitted to; 0 where it came from a file
    measured: int  # masks that were reconstructed, none of which was fitted to
    left_out: list[str]  # why pairs of S and D are missing

    def table(self) -> str:
        """Mean IoU of every class at the objects' own resolution, and of all masks; there must be ``rows``."""
        counted = (name for name, q in zip(self.classes, self.rows[0].by_class, strict=True) if q.count)
        width = max(map(len, counted), default=0)
        values = " ".join(f"{row.total.iou:>{max(6, len(row.title))}.4f}" for row in self.rows)
        return f"{class_table(self.rows, self.classes)}\n{'all':{width}} {self.measured:>6,} {values}"

    def poor_classes(self) -> list[str]:
        """Classes that every encoding reconstructs with a mean IoU below 0.75, and the best of them."""
        found = []
        for k, name in enumerate(self.classes):
            if self.rows and self.rows[0].by_class[k].count >= FEWEST:
                best = max(self.rows, key=lambda row: row.by_class[k].iou)
                if best.by_class[k].iou < POOR_IOU:
                    found.append(f"{name} ({best.by_class[k].iou:.2f} at best, with {best.title})")
        return found


def held_out(file: CocoFile) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows to fit to and those to measure: of each class a fifth, 200 at most, all evenly spaced."""
    known = np.append(file.sizes.min(axis=1) > 0, False)[file.image_rows]
    usable = np.flatnonzero(file.learned & ~file.having(EMPTY) & known)
    categories = file.annotations.categories[usable]
    measured = [np.zeros(0, np.int64)]
    for category in np.unique(categories):
        rows = usable[categories == category]
        count = min(MOST_PER_CLASS, -(-len(rows) // HELD_OUT_SHARE))
        measured.append(rows[(np.arange(count) * len(rows)) // count])
    chosen = np.sort(np.concatenate(measured))
    others = np.setdiff1d(usable, chosen)
    count = min(MOST_FITTED, len(others))
    return others[np.arange(count) * len(others) // max(1, count)], chosen


def measure_classes(
    file: CocoFile,
    pairs: Sequence[tuple[int, int]],
    components: Components | None = None,
    workers: int = 1,
    grids: Sequence[int] = (),
) -> Encodings:
    """Reconstruct masks of every class with several encodings.

    Args:
        file, workers: scanned and checked; processes.
        pairs: (S, D) to fit, to masks that are not measured.
        components: measured instead; all its components and, of one dictionary, the D of ``pairs`` that it has.
        grids: sides of bare grids of pixels to measure as well.

    Raises:
        ValueError: the components are for another number of classes.
    """
    fit_rows, rows = held_out(file)
    if not len(rows):
        return Encodings([], file.classes, 0, 0, ["there is no usable mask"])
    encodings, left_out = [], list[str]()
    if components is not None:
        dims = [dim for size, dim in pairs if size == components.basis.mask_size]
        fit_rows, encodings = fit_rows[:0], list(encodings_of(components, dims, len(file.classes)))
    else:
        fitted_to, dims = Selection(file.annotations, fit_rows), [dim for _, dim in pairs]
        dictionaries = FittedDictionaries(fitted_to, len(file.classes), dims, per_class=False, workers=workers)
        for size, dim in pairs:
            try:
                if not len(fit_rows):
                    raise ValueError("there are too few masks to fit to some and measure others")
                encodings += make_encodings("pca", [size], [dim], bases=dictionaries.bases)
            except ValueError as error:
                left_out.append(f"{size}/{dim}: {error}")
    encodings += make_encodings("grid", grids)
    if not encodings:
        return Encodings([], file.classes, len(fit_rows), 0, left_out)
    tally = measure_encodings(Selection(file.annotations, rows), encodings, len(file.classes), workers)
    found = rows_of(tally, encodings, len(file.classes))
    return Encodings(found, file.classes, len(fit_rows), found[0].total.count, left_out)
