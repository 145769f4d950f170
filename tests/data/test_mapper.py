import logging
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from threadpoolctl import threadpool_info, threadpool_limits

from meinst_d2.data.loader import seeded
from meinst_d2.data.mapper import MEInstDatasetMapper
from meinst_d2.masks import rle as I
from meinst_d2.masks.rasterize import crop_bitmask
from tests.models import tiny_cfg

TRIANGLE = [20.0, 10, 60, 10, 20, 50]


def mask_of(polygon: list[float]) -> np.ndarray:
    return mask_util.decode(mask_util.frPyObjects([polygon], 80, 100))[..., 0]


def annotation(segmentation: Any, **changes: Any) -> dict[str, Any]:
    box = {"bbox": [20.0, 10.0, 40.0, 40.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2}
    return box | {"segmentation": segmentation, "iscrowd": 0} | changes


@pytest.fixture
def record(tmp_path: Path, rng: np.random.Generator) -> dict[str, Any]:
    path = tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(path)
    return {"file_name": str(path), "image_id": 7, "height": 80, "width": 100}


def mapper(*augmentations: Any, **options: Any) -> MEInstDatasetMapper:
    defaults = {"augmentations": augmentations, "image_format": "BGR", "mask_size": 28}
    return MEInstDatasetMapper(**(defaults | options))


def test_polygons_rles_and_bit_masks_of_one_image(record: dict[str, Any]) -> None:
    mask = mask_of(TRIANGLE)
    kinds = [[TRIANGLE], mask_util.encode(np.asfortranarray(mask)), mask.astype(bool)]
    sample = mapper()(record | {"annotations": [annotation(kind) for kind in kinds]})
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[20, 10, 60, 50]] * 3
    assert instances.gt_classes.tolist() == [2, 2, 2]
    polygon, rle, bit_mask = instances.gt_mask_templates
    assert polygon.dtype == torch.bool and torch.equal(rle, bit_mask)
    assert (polygon != rle).float().mean() < 0.05
    assert 0.4 < polygon.float().mean() < 0.6
    assert sample["image"].shape == (3, 80, 100) and sample["image"].dtype == torch.uint8
    assert (sample["image_id"], sample["height"], sample["width"]) == (7, 80, 100)


def test_matrix_products_take_no_threads_from_training(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def threads() -> set[int]:  # of the OpenBLAS in numpy's wheel
        return {pool["num_threads"] for pool in threadpool_info() if "numpy" in pool["filepath"]}

    def crop(*args: Any) -> np.ndarray:
        assert threads() <= {1}
        return crop_bitmask(*args)

    monkeypatch.setattr("meinst_d2.data.mapper.crop_bitmask", crop)
    with threadpool_limits(2, "blas"):
        mapper()(record | {"annotations": [annotation(mask_of(TRIANGLE).astype(bool))]})
        assert threads() <= {2}


def test_masks_follow_the_augmentation(record: dict[str, Any]) -> None:
    kinds = [[TRIANGLE], mask_util.encode(np.asfortranarray(mask_of(TRIANGLE)))]
    record["annotations"] = [annotation(kind) for kind in kinds]
    plain = mapper()(record)["instances"]
    changed = mapper(T.ResizeShortestEdge(160, 400), T.RandomFlip(1.0))(record)["instances"]
    assert changed.image_size == (160, 200)
    assert changed.gt_boxes.tensor.tolist() == [[80, 20, 160, 100]] * 2
    flipped = plain.gt_mask_templates.flip(2)
    assert (changed.gt_mask_templates != flipped).float().mean() < 0.04


def test_boxes_classes_and_pixels_are_those_of_detectron2s_mapper(record: dict[str, Any]) -> None:
    cfg = tiny_cfg("INPUT.MIN_SIZE_TRAIN", (60, 90), "INPUT.RANDOM_FLIP", "horizontal")
    record["annotations"] = [
        annotation([TRIANGLE]),
        annotation([TRIANGLE], bbox=[3.3, 4.7, 20.2, 30.9]),
        annotation([TRIANGLE], iscrowd=1),
        annotation([TRIANGLE], bbox=[90.5, 70.25, 30.0, 30.0], category_id=0),
    ]
    ours, theirs = MEInstDatasetMapper(cfg), DatasetMapper(cfg, is_train=True)
    for position in range(5):
        with seeded(0, position):
            a = ours(record)
        with seeded(0, position):
            b = theirs(record)
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)
        masks = b["instances"].gt_masks.crop_and_resize(b["instances"].gt_boxes.tensor, 28)
        assert torch.equal(a["instances"].gt_mask_templates, masks)


@pytest.mark.parametrize("annotations", [None, [], [annotation([TRIANGLE], iscrowd=1)]])
def test_images_without_objects_and_with_crowds_only(record: dict[str, Any], annotations: list | None) -> None:
    if annotations is not None:
        record["annotations"] = annotations
    instances = mapper()(record)["instances"]
    assert len(instances) == 0
    assert instances.gt_mask_templates.shape == (0, 28, 28) and instances.gt_boxes.tensor.shape == (0, 4)


def test_unusable_annotations_are_left_out(record: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    wrong = mask_util.encode(np.asfortranarray(np.ones((5, 5), np.uint8)))
    record["annotations"] = [
        annotation([[1, 2]]),
        annotation([TRIANGLE]),
        annotation(wrong),
        annotation([TRIANGLE], bbox=[120.0, 10.0, 20.0, 20.0]),
        annotation([TRIANGLE], bbox=[20.0, 10.0, 0.0, 40.0]),
    ]
    with caplog.at_level(logging.WARNING):
        instances = mapper()(record)["instances"]
    assert len(instances) == 1
    for reason in (I.FEW_POINTS, I.BAD_RLE, I.OUTSIDE, I.NO_BOX):
        assert f"left out an instance: {reason}" in caplog.text


def test_without_masks_none_are_made(record: dict[str, Any]) -> None:
    instances = mapper(mask_size=None)(record | {"annotations": [annotation(None)]})["instances"]
    assert len(instances) == 1 and not instances.has("gt_mask_templates")
    record["annotations"] = [annotation([TRIANGLE])]
    before = repr(record)
    mapper(T.RandomFlip(1.0))(record)
    assert repr(record) == before
    crop = T.CropTransform(0, 0, 40, 80)
    rle = mask_util.encode(np.asfortranarray(mask_of(TRIANGLE)))
    (box,) = mapper(crop, recompute_boxes=True)(record | {"annotations": [annotation(rle)]})["instances"].gt_boxes
    assert box.tolist()[:3] == [20, 10, 40] and 48 <= box[3] <= 50
    outside = T.CropTransform(0, 60, 20, 20)
    assert len(mapper(outside, recompute_boxes=True)(record | {"annotations": [annotation(rle)]})["instances"]) == 0


@pytest.mark.parametrize(
    ("window", "boxes"),
    [((0, 0, 40, 80), [[2, 2, 40, 50]]), ((0, 20, 30, 30), [[20, 0, 30, 30]]), ((70, 0, 30, 80), [])],
)
def test_polygons_are_cropped(
    record: dict[str, Any], caplog: pytest.LogCaptureFixture, window: tuple[int, ...], boxes: list[list[int]]
) -> None:
    dot = [2.0, 2, 4, 2, 4, 4, 2, 4]  # which the second window cuts away
    record["annotations"] = [annotation([TRIANGLE, dot], bbox=[2.0, 2.0, 58.0, 48.0])]
    crop = T.CropTransform(*window)
    with caplog.at_level(logging.WARNING):
        instances = mapper(crop, recompute_boxes=True)(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == boxes and "left out" not in caplog.text
    assert all(template.any() for template in instances.gt_mask_templates)
    without = mapper(crop)(record)["instances"]  # boxes as they are: the mask of one may be empty
    assert without.gt_mask_templates.shape == (len(without), 28, 28)


def test_random_crops_of_polygons(record: dict[str, Any]) -> None:
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", (0.4, 0.4))
    cfg = tiny_cfg(*crop, "INPUT.MIN_SIZE_TRAIN", (80,))
    record["annotations"] = [annotation([TRIANGLE])]
    counts = []
    for position in range(20):
        with seeded(0, position):
            instances = MEInstDatasetMapper(cfg)(record)["instances"]
        counts.append(len(instances))
        assert all(template.any() for template in instances.gt_mask_templates)
    assert 0 < sum(counts) < 20
