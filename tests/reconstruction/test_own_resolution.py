"""Masks at their own resolution, and templates stretched back to it."""

import dataclasses

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from torch.nn import functional as F

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.data.shapes import ShapesConfig, draw_image
from meinst_d2.masks.paste import stretch
from meinst_d2.reconstruction.measure import SIZES, own_resolution_mask, size_of


def rectangle(x0: float, y0: float, x1: float, y1: float, area: float | None = None) -> InstanceAnnotation:
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    return InstanceAnnotation([polygon], (x0, y0, x1, y1), (1000, 1000), 0, False, area)


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ((10, 20, 50, 40), (20, 40)),
        ((0, 0, 320, 7), (7, 320)),
        ((100, 100, 740, 420), (160, 320)),
        ((0, 0, 10, 1000), (320, 3)),
        ((5, 5, 5.2, 5.3), (1, 1)),
    ],
)
def test_the_shape_is_the_box_up_to_320(box: tuple[float, ...], shape: tuple[int, int]) -> None:
    mask = own_resolution_mask(rectangle(*box))
    assert mask.shape == shape and mask.dtype == bool
    if min(box[2] - box[0], box[3] - box[1]) > 1:
        assert mask.mean() > 0.9


def test_a_bit_mask_in_a_box_of_whole_pixels_is_a_crop(rng: np.random.Generator) -> None:
    bits = rng.random((60, 80)) < 0.5
    annotation = InstanceAnnotation(bits, (7, 11, 61, 43), (60, 80), 0, False)
    assert (own_resolution_mask(annotation) == bits[11:43, 7:61]).all()


def test_polygons_and_their_bit_mask_agree() -> None:
    compared = 0
    for number in range(8):
        _, found = draw_image(ShapesConfig(), (1, number))
        for a in found:
            if isinstance(a["segmentation"], list):
                x, y, w, h = (round(v) for v in a["bbox"])
                box = (x, y, x + w, y + h)
                polygon = InstanceAnnotation(a["segmentation"], box, (160, 160), 0, False)
                bits = mask_util.decode(mask_util.merge(mask_util.frPyObjects(a["segmentation"], 160, 160)))
                of_bits = dataclasses.replace(polygon, segmentation=bits.astype(bool))
                one, two = own_resolution_mask(polygon), own_resolution_mask(of_bits)
                assert (one & two).sum() / (one | two).sum() > 0.97
                compared += 1
    assert compared > 5


@pytest.mark.parametrize(
    ("area", "size"), [(1023.9, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (1e9, "large")]
)
def test_sizes_are_cocos(area: float, size: str) -> None:
    assert SIZES[size_of(rectangle(0, 0, 5, 5, area), np.ones((5, 5), bool))] == size


@pytest.mark.parametrize("area", [None, float("nan"), "?"])
def test_without_an_area_the_mask_tells_the_size(area: object) -> None:
    annotation = dataclasses.replace(rectangle(0, 0, 40, 40), area=area)
    half = np.arange(40)[:, None].repeat(40, 1) < 20
    assert SIZES[size_of(annotation, half)] == "small"
    assert SIZES[size_of(annotation, ~half | half)] == "medium"


@pytest.mark.parametrize(("height", "width"), [(56, 90), (28, 28), (5, 300), (1, 1), (11, 17)])
def test_stretching_is_detectron2s_pasting(rng: np.random.Generator, height: int, width: int) -> None:
    probabilities = rng.random((3, 28, 28)).astype(np.float32)
    y, x = (((torch.arange(n) + 0.5) / n * 2 - 1) for n in (height, width))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(3, -1, -1, -1)
    pasted = F.grid_sample(torch.from_numpy(probabilities)[:, None], grid, align_corners=False)[:, 0].numpy()
    stretched = stretch(probabilities, height, width)
    assert stretched.shape == (3, height, width)
    differ = stretched != (pasted >= 0.5)
    assert (np.abs(pasted[differ] - 0.5) < 1e-5).all()


def test_stretching_to_the_same_size_changes_nothing(rng: np.random.Generator) -> None:
    mask = rng.random((14, 14)) < 0.5
    assert (stretch(mask.astype(np.float32), 14, 14) == mask).all()


def test_exactly_one_half_counts() -> None:
    columns = np.tile([1.0, 0.0], (2, 1)).astype(np.float32)
    for width in (3, 9, 27, 81):  # the middle column lies between the two
        assert stretch(columns, width, width).sum(axis=1).max() == width // 2 + 1
