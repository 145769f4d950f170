import dataclasses
from array import array
from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from meinst_d2.data.annotations import AnnotationTable, InstanceAnnotation, Selection
from meinst_d2.data.instances import count_learnable, from_dataset_dicts, make_templates
from meinst_d2.masks import rle as I

SQUARE = [2.0, 2, 8, 2, 8, 8, 2, 8]
SEGMENTATIONS = [
    *([SQUARE], [SQUARE, [0, 0, 1, 0, 0.1, 1]], [np.array(SQUARE)]),
    *({"size": [9, 9], "counts": "PR1"}, {"size": [9, 9], "counts": [10, 71]}, None, [], [SQUARE, "text"]),
    *([SQUARE, [1.0, None]], [[[2, 2], [8, 2], [8, 8]]], [1, 2, 3], "text", [[2.0, 2, float("nan"), 2, 8, 8]]),
    *([[1, 2, 3, 4]], [[10**400, 2, 3, 4, 5, 6]], [SQUARE]),
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


LARGE = [10, 10, 30, 10, 30, 30, 10, 30]


def of_40_by_50(segmentation: Any, box: tuple = (10, 10, 30, 30)) -> InstanceAnnotation:
    return InstanceAnnotation(segmentation, box, (40, 50), 1, False)


def full_rle(height: int = 40, width: int = 50) -> dict[str, Any]:
    return mask_util.encode(np.asfortranarray(np.ones((height, width), np.uint8)))


def test_polygons_rles_and_bit_masks_side_by_side() -> None:
    bit_mask = np.zeros((40, 50), bool)
    bit_mask[10:30, 10:20] = True
    templates = make_templates(
        [
            of_40_by_50([LARGE]),
            of_40_by_50(full_rle()),
            of_40_by_50({"size": [40, 50], "counts": [0, 2000]}),
            of_40_by_50(bit_mask),
        ],
        4,
    )
    assert not templates.skipped and templates.kept.tolist() == [0, 1, 2, 3]
    assert templates.masks[:3].all()
    assert templates.masks[3].tolist() == [[True, True, False, False]] * 4


def test_usable_parts_are_used() -> None:
    templates = make_templates([of_40_by_50([[1, 2, 3, 4], LARGE])], 8)
    assert templates.masks.all() and not templates.skipped
    assert make_templates([], 8).masks.shape == (0, 8, 8)
    templates = make_templates([of_40_by_50([LARGE]), of_40_by_50([LARGE], (35, 35, 39, 39)), of_40_by_50([LARGE])], 8)
    assert templates.skipped == {I.EMPTY: 1}
    assert templates.kept.tolist() == [0, 2] and templates.masks.shape == (2, 8, 8)


def test_what_training_can_learn_is_counted_from_loaded_dicts() -> None:
    modes = pytest.importorskip("detectron2.structures").BoxMode

    def of(segmentation: Any, bbox: Any = (10, 10, 20, 20), **more: Any) -> dict[str, Any]:
        bbox = list(bbox) if bbox else None
        return {"bbox": bbox, "bbox_mode": modes.XYWH_ABS, "category_id": 0, "segmentation": segmentation} | more

    good = [of([LARGE]), of(full_rle()), of(np.ones((40, 50), bool)), of([LARGE], (10, 10, 30, 30), bbox_mode=0)]
    bad = {
        I.NO_BOX: [of([LARGE], [10, 10, 0, 20]), of([LARGE], bbox=None), of([LARGE], (10, 10, float("nan"), 20))],
        I.OUTSIDE: [of([LARGE], [60, 10, 20, 20])],
        I.CROWD: [of([LARGE], iscrowd=1)],
        I.NO_MASK: [of(None), of([])],
        I.FEW_POINTS: [of([[1, 2, 3, 4]]), of([[1, 2, 3, 4, 5, 6, 7]])],
        I.MALFORMED: [
            *(of([[[1, 2], [3, 4], [5, 6]]]), of("square"), of(LARGE), of([["a", 1, 2, 3, 4, 5]])),
            *(of([[float("nan"), 1, 2, 3, 4, 5]]), of([[10, 10], [30, 10], [30, 30]])),
        ],
        I.BAD_RLE: [of(full_rle(50, 40)), of({"size": [40, 50], "counts": [1]}), of(np.ones((3, 3), bool))],
    }
    records = [{"height": 40, "width": 50, "annotations": [*good, *chain(*bad.values())]}, {"height": 4, "width": 5}]
    learnable, reasons = count_learnable(records)
    assert learnable == len(good) and reasons == {reason: len(given) for reason, given in bad.items()}
    templates = make_templates(from_dataset_dicts(records), 8)  # the same rules
    assert templates.kept.tolist() == [0, 1, 2, 3] and templates.skipped == reasons
    boxes = {reason: len(bad[reason]) for reason in (I.NO_BOX, I.OUTSIDE, I.CROWD)}
    assert count_learnable(records, masks=False) == (sum(reasons.values()) - sum(boxes.values()) + len(good), boxes)
    assert count_learnable([]) == (0, {})
