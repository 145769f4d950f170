import dataclasses
from array import array
from typing import Any

import numpy as np
import pytest

from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation, Selection
from meinst_d2.data.instances import make_templates

SQUARE = [2.0, 2, 8, 2, 8, 8, 2, 8]
SEGMENTATIONS = [
    [SQUARE],
    [SQUARE, [0, 0, 1, 0, 0.1, 1]],
    [np.array(SQUARE)],
    {"size": [9, 9], "counts": "PR1"},
    {"size": [9, 9], "counts": [10, 71]},
    None,
    [],
    [SQUARE, "text"],
    [SQUARE, [1.0, None]],
    [[[2, 2], [8, 2], [8, 8]]],
    [1, 2, 3],
    "text",
    [[2.0, 2, float("nan"), 2, 8, 8]],
    [[1, 2, 3, 4]],
    [[10**400, 2, 3, 4, 5, 6]],
    [SQUARE],
]


def annotation(segmentation: Any, **changes: Any) -> InstanceAnnotation:
    found = InstanceAnnotation(segmentation, (1.5, 2.25, 8.125, 0.1), (9, 9), 3, False, 7.5)
    return dataclasses.replace(found, **changes)


def plain(segmentation: Any) -> Any:
    """Arrays as lists, to compare."""
    if isinstance(segmentation, list):
        return [part.tolist() if isinstance(part, np.ndarray) else part for part in segmentation]
    return segmentation


def test_annotations_come_back_as_they_were() -> None:
    given = [annotation(segmentation) for segmentation in SEGMENTATIONS]
    given += [annotation(None, iscrowd=True), annotation(None, area=None, category=-1)]
    table = AnnotationTable(given)
    assert len(table) == len(given)
    for read in (list(table), table[:], [table[i] for i in range(len(table))]):
        for new, old in zip(read, given, strict=True):
            assert dataclasses.replace(new, segmentation=None) == dataclasses.replace(old, segmentation=None)
            np.testing.assert_equal(plain(new.segmentation), plain(old.segmentation))
    assert [a.segmentation for a in table[3:6]] == SEGMENTATIONS[3:6]
    assert table[-1].category == -1
    with pytest.raises(IndexError):
        table[len(given)]
    assert len(AnnotationTable()) == 0 and list(AnnotationTable()) == [] and AnnotationTable()[:5] == []


def test_templates_and_reasons_are_those_of_the_annotations_themselves() -> None:
    given = [annotation(segmentation, box=(1.0, 1.0, 9.0, 9.0)) for segmentation in SEGMENTATIONS]
    one, two = make_templates(given, 7), make_templates(AnnotationTable(given), 7)
    assert len(one.masks) >= 4 and len(one.skipped) >= 4
    assert (one.masks == two.masks).all() and (one.kept == two.kept).all() and one.skipped == two.skipped


@pytest.mark.parametrize("indices", [range(1, 9, 3), array("q", [1, 4, 7]), np.array([1, 4, 7])])
def test_a_selection_is_a_sequence(indices: Any) -> None:
    table = AnnotationTable(annotation([SQUARE], category=i) for i in range(9))
    chosen = Selection(table, indices)
    assert len(chosen) == 3
    assert [a.category for a in chosen] == [1, 4, 7] == [a.category for a in chosen[:]]
    assert chosen[1:][0].category == 4 and chosen[-1].category == 7
