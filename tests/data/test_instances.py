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


def test_usable_parts_are_used() -> None:
    templates = make_templates([annotation([[1, 2, 3, 4], SQUARE])], 8)
    assert templates.masks.all() and not templates.skipped
    assert make_templates([], 8).masks.shape == (0, 8, 8)
    templates = make_templates([annotation([SQUARE]), annotation([SQUARE], (35, 35, 39, 39)), annotation([SQUARE])], 8)
    assert templates.skipped == {I.EMPTY: 1}
    assert templates.kept.tolist() == [0, 2] and templates.masks.shape == (2, 8, 8)


def test_what_training_can_learn_is_counted_from_loaded_dicts() -> None:
    modes = pytest.importorskip("detectron2.structures").BoxMode

    def of(segmentation: Any, bbox: Any = (10, 10, 20, 20), **more: Any) -> dict[str, Any]:
        bbox = list(bbox) if bbox else None
        return {"bbox": bbox, "bbox_mode": modes.XYWH_ABS, "category_id": 0, "segmentation": segmentation} | more

    good = [of([SQUARE]), of(full_rle()), of(np.ones((40, 50), bool)), of([SQUARE], (10, 10, 30, 30), bbox_mode=0)]
    bad = {
        I.NO_BOX: [of([SQUARE], [10, 10, 0, 20]), of([SQUARE], bbox=None), of([SQUARE], (10, 10, float("nan"), 20))],
        I.OUTSIDE: [of([SQUARE], [60, 10, 20, 20])],
        I.CROWD: [of([SQUARE], iscrowd=1)],
        I.NO_MASK: [of(None), of([])],
        I.FEW_POINTS: [of([[1, 2, 3, 4]]), of([[1, 2, 3, 4, 5, 6, 7]])],
        I.MALFORMED: [
            *(of([[[1, 2], [3, 4], [5, 6]]]), of("square"), of(SQUARE), of([["a", 1, 2, 3, 4, 5]])),
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
