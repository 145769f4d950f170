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
        e = self.encoding
        choices = (f"{'-' if v is None else 'on' if v else 'off':>7}" for v in (e.sigmoid, e.whiten))
        return f"{e.family:<10} {e.mask_size or '-':>3} {e.length:>7} {' '.join(choices)}"


def rows_of(tally: Tally, encodings: Sequence[Encoding], num_classes: int) -> list[Row]:
    """A row per encoding, in order."""
    return [
        Row(
            encoding,
            tally.quality(i),
            [tally.quality(i, size=size) for size in range(len(SIZES))],
            [tally.quality(i, classes=k) for k in range(num_classes)],
        )
        for i, encoding in enumerate(encodings)
    ]


def in_first_settings(rows: Sequence[Row]) -> list[Row]:
    """The rows with the sigmoid and the whitening of their family's first row."""
    first: dict[str, tuple[bool | None, bool | None]] = {}
    settings = [(row.encoding.family, (row.encoding.sigmoid, row.encoding.whiten)) for row in rows]
    return [row for row, (family, its) in zip(rows, settings, strict=True) if first.setdefault(family, its) == its]


def typical(rows: Sequence[Row]) -> list[Row]:
    """Of every family the row at the smallest S that is nearest to 60 numbers."""

    def distance(row: Row) -> tuple[int, int]:
        return row.encoding.mask_size or 0, abs(row.encoding.length - TYPICAL_LENGTH)

    of_family: dict[str, list[Row]] = {}
    for row in in_first_settings(rows):
        of_family.setdefault(row.encoding.family, []).append(row)
    return [min(group, key=distance) for group in of_family.values()]


def quality_table(rows: Sequence[Row]) -> str:
    """The four metrics over all masks."""
    lines = [
        f"{'':{len(COLUMNS)}} |   at S x S    | at own resolution",
        f"{COLUMNS} |    IoU pooled |    IoU boundary",
    ]
    for row in rows:
        q = row.total
        values = [_number(v) for v in (q.template_iou, q.pooled_miou, q.iou, q.boundary_iou)]
        lines.append(f"{row.settings} | {values[0]} {values[1]} | {values[2]} {values[3]}")
    return "\n".join(lines)


def size_table(rows: Sequence[Row]) -> str:
    """IoU and boundary IoU at the object's own resolution, by size."""
    lines = [
        f"{'':{len(COLUMNS)}} | {'IoU':<20} | boundary IoU",
        COLUMNS + 2 * (" | " + " ".join(f"{name:>6}" for name in SIZES)),
    ]
    for row in rows:
        iou, boundary = (" ".join(_number(getattr(q, m)) for q in row.by_size) for m in ("iou", "boundary_iou"))
        lines.append(f"{row.settings} | {iou} | {boundary}")
    return "\n".join(lines)


def class_table(rows: Sequence[Row], classes: Sequence[str]) -> str:
    """IoU at the object's own resolution of every class that has masks, a column per row."""
    shown = [(k, name, rows[0].by_class[k].count) for k, name in enumerate(classes) if rows[0].by_class[k].count]
    width = max((len(name) for _, name, _ in shown), default=0)
    lines = [f"{'':{width}} {'masks':>6} " + " ".join(f"{row.title:>6}" for row in rows)]
    for k, name, count in shown:
        values = [f"{_number(row.by_class[k].iou):>{len(row.title)}}" for row in rows]
        lines.append(f"{name:{width}} {count:>6,} {' '.join(values)}")
    return "\n".join(lines)


def as_json(rows: Sequence[Row], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The rows for a JSON file; what has no value is None."""

    def values(quality: Quality) -> dict[str, Any]:
        return {name: None if math.isnan(v) else v for name, v in dataclasses.asdict(quality).items()}

    return [
        {
            "encoder": row.encoding.family,
            "mask_size": row.encoding.mask_size,
            "numbers": row.encoding.length,
            "sigmoid": row.encoding.sigmoid,
            "whiten": row.encoding.whiten,
            "all": values(row.total),
            "by_size": {name: values(q) for name, q in zip(SIZES, row.by_size, strict=True)},
            "by_class": {name: values(q) for name, q in zip(classes, row.by_class, strict=True) if q.count},
        }
        for row in rows
    ]


def _number(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{value:6.4f}"
