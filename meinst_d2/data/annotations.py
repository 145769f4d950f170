"""The annotations of a dataset in a few long arrays instead of millions of small objects.

A parsed JSON file needs some 3.5 KB for a COCO instance, the arrays about 0.6. What matters more: forked processes read
arrays without writing to them, while looking at a Python object counts a reference in it, and so copies its page.
"""

from __future__ import annotations

import math
import pickle
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class InstanceAnnotation:
    """One annotation as the dataset has it, not yet checked."""

    segmentation: Any  # polygons, an RLE dict or an (H, W) bit mask
    box: tuple[float, float, float, float]  # ``xyxy`` in pixels
    image_size: tuple[int, int]  # (height, width)
    category: int  # the contiguous number of its class, or -1
    iscrowd: bool
    area: float | None = None  # of the object in pixels, where the dataset says it


class AnnotationTable(Sequence[InstanceAnnotation]):
    """A sequence of annotations that makes each when it is asked for.

    Polygons come back as lists of (2n,) float64 arrays that look into the table; nothing can be appended while one of
    them is in use. Other segmentations come back as they were.
    """

    def __init__(self, annotations: Iterable[InstanceAnnotation] = ()) -> None:
        self._points = array("d")  # the coordinates of every polygon, one polygon after another
        self._point_ends = array("q", [0])  # of each polygon, after a zero
        self._polygon_ends = array("q", [0])  # of each annotation, after a zero
        self._others = bytearray()  # segmentations that are not polygons, pickled
        self._other_ends = array("q", [0])
        self._boxes, self._areas = array("d"), array("d")
        self._sizes, self._categories, self._crowd = array("q"), array("q"), bytearray()
        for annotation in annotations:
            self.append(annotation)

    def append(self, annotation: InstanceAnnotation) -> None:
        """Add an annotation at the end."""
        if not self._append_polygons(annotation.segmentation):
            try:
                self._others += pickle.dumps(annotation.segmentation, protocol=5)
            except RecursionError:
                self._others += pickle.dumps("nested too deeply to be a segmentation", protocol=5)
        self._polygon_ends.append(len(self._point_ends) - 1)
        self._other_ends.append(len(self._others))
        self._boxes.extend(annotation.box)
        self._sizes.extend(annotation.image_size)
        self._categories.append(annotation.category)
        self._crowd.append(annotation.iscrowd)
        self._areas.append(math.nan if annotation.area is None else annotation.area)

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """(M, 4) ``xyxy`` of all, looking into the table: nothing can be appended while it is in use."""
        return np.asarray(self._boxes).reshape(-1, 4)

    @property
    def categories(self) -> npt.NDArray[np.int64]:
        """(M,) of all, looking into the table."""
        return np.asarray(self._categories)

    def _append_polygons(self, segmentation: Any) -> bool:
        """Whether it is a list of lists of numbers, which then are stored."""
        if not isinstance(segmentation, list) or not segmentation:
            return False
        points, polygons = len(self._points), len(self._point_ends)
        try:
            for part in segmentation:
                (self._points.fromlist if isinstance(part, list) else self._points.extend)(part)
                self._point_ends.append(len(self._points))
        except (TypeError, OverflowError):
            del self._points[points:], self._point_ends[polygons:]
            return False
        return True

    def __len__(self) -> int:
        return len(self._categories)

    def __getitem__(self, index: Any) -> Any:  # an annotation, or a list of them for a slice
        points = np.asarray(self._points)
        at = range(len(self))[index]
        return self._make(at, points) if isinstance(at, int) else [self._make(i, points) for i in at]

    def _make(self, i: int, points: npt.NDArray[np.float64]) -> InstanceAnnotation:
        start, end = self._other_ends[i], self._other_ends[i + 1]
        if end > start:
            segmentation = pickle.loads(self._others[start:end])
        else:
            ends = self._point_ends[self._polygon_ends[i] : self._polygon_ends[i + 1] + 1]
            segmentation = [points[ends[k] : ends[k + 1]] for k in range(len(ends) - 1)]
        area = self._areas[i]
        return InstanceAnnotation(
            segmentation,
            tuple(self._boxes[4 * i : 4 * i + 4]),  # type: ignore[arg-type]
            (self._sizes[2 * i], self._sizes[2 * i + 1]),
            self._categories[i],
            bool(self._crowd[i]),
            None if math.isnan(area) else area,
        )


class Selection(Sequence[InstanceAnnotation]):
    """Some annotations of a sequence, without a copy: those at ``indices``, a range or an array, in order."""

    def __init__(self, annotations: Sequence[InstanceAnnotation], indices: Sequence[int]) -> None:
        self._annotations, self._indices = annotations, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:  # an annotation, or a list of them for a slice
        if isinstance(index, slice):
            return [self._annotations[i] for i in self._indices[index]]
        return self._annotations[self._indices[index]]
