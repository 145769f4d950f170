"""What was measured of encodings, as rows, tables and JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meinst_d2.reconstruction.encodings import Encoding
from meinst_d2.reconstruction.measure import SIZES, Quality, Tally

TYPICAL_LENGTH = 60
"""Numbers in the vector, where one encoding of a family stands for all."""
COLUMNS = f"{'encoder':<10} {'S':>3} {'numbers':>7} {'sigmoid':>7} {'whiten':>7}"


@dataclass(frozen=True)
class Row:
    """What was measured of one encoding: of all masks, per entry of ``SIZES`` and per class."""

    encoding: Encoding
    total: Quality
    by_size: Sequence[Quality]
    by_class: Sequence[Quality]

    @property
    def label(self) -> str:
        """Family and template size."""
        size = self.encoding.mask_size
        return self.encoding.family + (f" {size}x{size}" if size else "")

    @property
    def title(self) -> str:
        """Family, template size and length of the vector."""
        return f"{self.label}, {self.encoding.length}"

    @property
    def settings(self) -> str:
        """The values of ``COLUMNS``."""
        family, size, length, *switches = self.encoding.settings
        choices = " ".join(f"{'-' if on is None else 'on' if on else 'off':>7}" for on in switches)
        return f"{family:<10} {size or '-':>3} {length:>7} {choices}"


def rows_of(tally: Tally, encodings: Sequence[Encoding], num_classes: int) -> list[Row]:
    """A row per encoding, in order."""
    rows = []
    for i, encoding in enumerate(encodings):
        by_size = [tally.quality(i, size=size) for size in range(len(SIZES))]
        rows.append(Row(encoding, tally.quality(i), by_size, [tally.quality(i, classes=k) for k in range(num_classes)]))
    return rows


def in_first_settings(rows: Sequence[Row]) -> list[Row]:
    """The rows with the sigmoid and the whitening of their family's first row."""
    first: dict[str, Encoding] = {}
    pairs = [(row, first.setdefault(row.encoding.family, row.encoding)) for row in rows]
    return [row for row, encoding in pairs if row.encoding.settings[3:] == encoding.settings[3:]]


def typical(rows: Sequence[Row]) -> list[Row]:
    """Of every family the row at the smallest S that is nearest to 60 numbers."""
    best: dict[str, Row] = {}
    by_distance = sorted(in_first_settings(rows), key=lambda row: abs(row.encoding.length - TYPICAL_LENGTH))
    for row in sorted(by_distance, key=lambda row: row.encoding.mask_size or 0):
        best.setdefault(row.encoding.family, row)
    return [best[family] for family in dict.fromkeys(row.encoding.family for row in rows)]


def quality_table(rows: Sequence[Row]) -> str:
    """The four metrics over all masks."""
    lines = [
        " " * len(COLUMNS) + " |   at S x S    | at own resolution",
        f"{COLUMNS} |    IoU pooled |    IoU boundary",
    ]
    for row in rows:
        template, pooled, iou, boundary = (_number(value) for value in dataclasses.astuple(row.total)[1:])
        lines.append(f"{row.settings} | {template} {pooled} | {iou} {boundary}")
    return "\n".join(lines)


def size_table(rows: Sequence[Row]) -> str:
    """IoU and boundary IoU at the object's own resolution, by size."""
    names = " | " + " ".join(f"{name:>6}" for name in SIZES)
    lines = [f"{'':{len(COLUMNS)}} | {'IoU':<20} | boundary IoU", COLUMNS + 2 * names]
    for row in rows:
        iou, boundary = (" ".join(_number(getattr(q, m)) for q in row.by_size) for m in ("iou", "boundary_iou"))
        lines.append(f"{row.settings} | {iou} | {boundary}")
    return "\n".join(lines)


def class_table(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """IoU at the object's own resolution of every class that has masks, a column per row."""
    shown = [(name, of) for name, *of in zip(classes, *(row.by_class for row in rows), strict=True) if of[0].count]
    width = max((len(name) for name, _ in shown), default=0)
    lines = [f"{'':{width}} {'masks':>6} " + " ".join(f"{row.title:>6}" for row in rows)]
    for name, of in shown:
        values = " ".join(f"{_number(q.iou):>{len(row.title)}}" for q, row in zip(of, rows, strict=True))
        lines.append(f"{name:{width}} {of[0].count:>6,} {values}")
    return "\n".join(lines)


def as_json(rows: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows for a JSON file; what has no value is None."""

    def values(quality: Quality) -> dict[str, Any]:
        return {name: None if math.isnan(v) else v for name, v in dataclasses.asdict(quality).items()}

    return [
        {
            **dict(zip(("encoder", "mask_size", "numbers", "sigmoid", "whiten"), row.encoding.settings, strict=True)),
            "all": values(row.total),
            "by_size": {name: values(q) for name, q in zip(SIZES, row.by_size, strict=True)},
            "by_class": {name: values(q) for name, q in zip(classes, row.by_class, strict=True) if q.count},
        }
        for row in rows
    ]


def _number(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{value:6.4f}"
