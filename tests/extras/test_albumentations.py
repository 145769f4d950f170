from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from meinst_d2.data.augmentation import AlbumentationsPipeline
from meinst_d2.data.loader import seeded
from meinst_d2.data.mapper import MEInstDatasetMapper

A = pytest.importorskip("albumentations", reason="albumentations is an extra: make test-extras")
TRIANGLE = [20.0, 10, 60, 10, 20, 50]


def pipeline(tmp_path: Path, *transforms: Any, image_format: str = "BGR", **options: Any) -> AlbumentationsPipeline:
    path = str(tmp_path / "pipeline.yaml")
    A.save(A.Compose(list(transforms), **options), path, data_format="yaml")
    return AlbumentationsPipeline(path, image_format)


@pytest.fixture
def record(tmp_path: Path, rng: np.random.Generator) -> dict[str, Any]:
    path = tmp_path / "image.png"
    Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(path)
    mask = np.zeros((80, 100), bool)
    mask[30:70, 50:90] = True
    mask[40:50, 60:70] = False
    box = {"bbox_mode": BoxMode.XYXY_ABS, "category_id": 2, "iscrowd": 0}
    annotations = [
        {"bbox": [20.0, 10, 60, 50], "segmentation": [TRIANGLE]},
        {"bbox": [50, 30, 90, 70], "segmentation": mask},
    ]
    size = {"height": 80, "width": 100}
    return size | {"file_name": str(path), "annotations": [box | annotation for annotation in annotations]}


def mapper(*augmentations: Any, **options: Any) -> MEInstDatasetMapper:
    return MEInstDatasetMapper(**({"augmentations": augmentations, "image_format": "BGR", "mask_size": 28} | options))


@pytest.mark.parametrize("masks", [True, False])
def test_a_flip_is_detectron2s(record: dict[str, Any], tmp_path: Path, masks: bool) -> None:
    options = {"mask_size": 28 if masks else None}
    ours = mapper(pipeline=pipeline(tmp_path, A.HorizontalFlip(p=1)), **options)(record)
    theirs = mapper(T.RandomFlip(1.0), **options)(record)
    assert torch.equal(ours["image"], theirs["image"])
    a, b = ours["instances"], theirs["instances"]
    assert torch.equal(a.gt_classes, b.gt_classes)
    assert (a.gt_boxes.tensor - b.gt_boxes.tensor).abs().max() <= masks  # tips of polygons have less than a pixel
    if masks:
        assert torch.equal(a.gt_boxes.tensor[1], b.gt_boxes.tensor[1])
        assert torch.equal(a.gt_mask_templates[1], b.gt_mask_templates[1])
        assert (a.gt_mask_templates != b.gt_mask_templates).float().mean() < 0.03


def test_what_a_crop_leaves_of_objects(record: dict[str, Any], tmp_path: Path) -> None:
    crop = pipeline(tmp_path, A.Crop(70, 30, 100, 80))
    instances = mapper(pipeline=crop)(record)["instances"]
    assert instances.image_size == (50, 30)
    assert instances.gt_boxes.tensor.tolist() == [[0, 0, 20, 40]]
    assert instances.gt_mask_templates.all()
    assert len(mapper(pipeline=crop)(record | {"annotations": []})["instances"]) == 0


def test_colours_leave_masks_alone(record: dict[str, Any], tmp_path: Path) -> None:
    colours = A.OneOf([A.InvertImg(p=1), A.Sequential([A.InvertImg(p=1)])], p=1)
    plain, changed = mapper()(record), mapper(pipeline=pipeline(tmp_path, colours))(record)
    assert torch.equal(changed["image"], 255 - plain["image"])
    for name in ("gt_boxes", "gt_classes", "gt_mask_templates"):
        a, b = plain["instances"].get(name), changed["instances"].get(name)
        assert torch.equal(getattr(a, "tensor", a), getattr(b, "tensor", b))


def test_it_sees_rgb_and_follows_the_seed(record: dict[str, Any], tmp_path: Path) -> None:
    red = {"r_shift_limit": (40, 40), "g_shift_limit": (0, 0), "b_shift_limit": (0, 0), "p": 1}
    changed = []
    for order in ("BGR", "RGB"):
        shift = pipeline(tmp_path, A.RGBShift(**red), image_format=order)
        before, after = (mapper(image_format=order, pipeline=given)(record)["image"] for given in (None, shift))
        changed.append((before != after).any(dim=2).any(dim=1).tolist())
    assert changed == [[False, False, True], [True, False, False]]
    random = mapper(pipeline=pipeline(tmp_path, A.RandomBrightnessContrast(p=0.5), A.RandomRotate90(p=0.5)))
    drawn = []
    for position in (0, 1, 2, 3, 0):
        with seeded(0, position):
            drawn.append(random(record))
    assert torch.equal(drawn[0]["image"], drawn[4]["image"])
    assert torch.equal(drawn[0]["instances"].gt_mask_templates, drawn[4]["instances"].gt_mask_templates)
    assert len({sample["image"].float().mean().item() for sample in drawn}) > 1


def test_files_that_are_no_pipeline(tmp_path: Path) -> None:
    for content, message in (
        (None, "cannot be read"),
        ("transform: [", "is not what albumentations.save"),
        ("transform:\n  __class_fullname__: os.system\n", "is not what albumentations.save"),
        ("transform:\n  __class_fullname__: HorizontalFlip\n  p: 1\n", "is a HorizontalFlip"),
    ):
        path = tmp_path / "other.yaml"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match=f"INPUT.ALBUMENTATIONS = .*{message}"):
            AlbumentationsPipeline(str(path))
    with pytest.raises(ValueError, match="leave them out, boxes follow from the masks"):
        pipeline(tmp_path, A.HorizontalFlip(), bbox_params=A.BboxParams("pascal_voc", label_fields=[]))
    with pytest.raises(ValueError, match="leave pixels uint8"):
        mapper(pipeline=pipeline(tmp_path, A.ToFloat(p=1)))({"file_name": _image(tmp_path)})


def _image(folder: Path) -> str:
    path = folder / "grey.png"
    Image.new("RGB", (8, 8)).save(path)
    return str(path)
