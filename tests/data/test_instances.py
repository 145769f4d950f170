from itertools import chain
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.instances import count_learnable, from_dataset_dicts, make_templates
from meinst_d2.masks import rle as I

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def annotation(segmentation: Any, box: tuple = (10, 10, 30, 30), crowd: bool = False) -> InstanceAnnotation:
    return InstanceAnnotation(segmentation, box, (40, 50), 1, crowd)


def full_rle(height: int = 40, width: int = 50) -> dict[str, Any]:
    return mask_util.encode(np.asfortranarray(np.ones((height, width), np.uint8)))


def test_polygons_rles_and_bit_masks_side_by_side() -> None:
    bit_mask = np.zeros((40, 50), bool)
    bit_mask[10:30, 10:20] = True
    templates = make_templates(
        [
            annotation([SQUARE]),
            annotation(full_rle()),
            annotation({"size": [40, 50], "counts": [0, 2000]}),
            annotation(bit_mask),
        ],
        4,
    )
    assert not templates.skipped and templates.kept.tolist() == [0, 1, 2, 3]
    assert templates.masks[:3].all()
    assert templates.masks[3].tolist() == [[True, True, False, False]] * 4


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (annotation([SQUARE], crowd=True), I.CROWD),
        (annotation(None), I.NO_MASK),
        (annotation([]), I.NO_MASK),
        (annotation([[1, 2, 3, 4]]), I.FEW_POINTS),
        (annotation([[1, 2, 3, 4, 5, 6, 7]]), I.FEW_POINTS),
        (annotation([SQUARE], (10, 10, 10, 30)), I.NO_BOX),
        (annotation([SQUARE], (10, 10, float("nan"), 30)), I.NO_BOX),
        (annotation(full_rle(50, 40)), I.BAD_RLE),
        (annotation({"size": [40, 50], "counts": [1]}), I.BAD_RLE),
        (annotation(np.ones((3, 3), bool)), I.BAD_RLE),
        (annotation("square"), I.MALFORMED),
        (annotation(SQUARE), I.MALFORMED),
        (annotation([["a", 1, 2, 3, 4, 5]]), I.MALFORMED),
        (annotation([[float("nan"), 1, 2, 3, 4, 5]]), I.MALFORMED),
        (annotation([[10, 10], [30, 10], [30, 30]]), I.MALFORMED),
        (annotation([SQUARE], (35, 35, 39, 39)), I.EMPTY),
        (annotation([SQUARE], (50, 10, 60, 30)), I.OUTSIDE),
    ],
)
def test_what_cannot_be_used_is_counted_by_reason(bad: InstanceAnnotation, reason: str) -> None:
    templates = make_templates([annotation([SQUARE]), bad, annotation([SQUARE])], 8)
    assert templates.skipped == {reason: 1}
    assert templates.kept.tolist() == [0, 2] and templates.masks.shape == (2, 8, 8)


def test_good_parts_of_a_polygon_are_used() -> None:
    templates = make_templates([annotation([[1, 2, 3, 4], SQUARE])], 8)
    assert templates.masks.all() and not templates.skipped


def test_no_annotations() -> None:
    assert make_templates([], 8).masks.shape == (0, 8, 8)


def test_what_training_can_learn_is_counted_from_loaded_dicts() -> None:
    modes = pytest.importorskip("detectron2.structures").BoxMode

    def of(segmentation: Any, bbox: Any = (10, 10, 20, 20), **more: Any) -> dict[str, Any]:
        bbox = list(bbox) if bbox else None
        return {"bbox": bbox, "bbox_mode": modes.XYWH_ABS, "category_id": 0, "segmentation": segmentation} | more

    good = [of([SQUARE]), of(full_rle()), of(np.ones((40, 50), bool)), of([SQUARE], (10, 10, 30, 30), bbox_mode=0)]
    bad = {
        I.NO_BOX: [of([SQUARE], [10, 10, 0, 20]), of([SQUARE], bbox=None)],
        I.OUTSIDE: [of([SQUARE], [60, 10, 20, 20])],
        I.CROWD: [of([SQUARE], iscrowd=1)],
        I.NO_MASK: [of(None), of([])],
        I.MALFORMED: [of([[[1, 2], [3, 4], [5, 6]]])],
        I.BAD_RLE: [of(full_rle(50, 40)), of(np.ones((3, 3), bool))],
    }
    records = [{"height": 40, "width": 50, "annotations": [*good, *chain(*bad.values())]}, {"height": 4, "width": 5}]
    learnable, reasons = count_learnable(records)
    assert learnable == len(good) and reasons == {reason: len(given) for reason, given in bad.items()}
    templates = make_templates(from_dataset_dicts(records), 8)  # the same rules
    assert templates.kept.tolist() == [0, 1, 2, 3] and templates.skipped == reasons
    assert count_learnable(records, masks=False) == (len(good) + 5, {I.NO_BOX: 2, I.OUTSIDE: 1, I.CROWD: 1})
    assert count_learnable([]) == (0, {})
