"""Pasting and encoding at the ends of the sizes: boxes of 1 to 20,000 pixels, images of one pixel and of 20,000 x 3."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.layers import paste_masks_in_image
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.masks import encode_templates, paste_masks
from tests.masks.oracle import assert_thresholded, check_encodings, random_templates, stretch_one_by_one

IMAGES = [(1, 1), (1, 50), (50, 1), (20_000, 3), (3, 20_000), (2, 2000)]
KINDS = ["noise", "binary", "sigmoid of 1e4", "full", "empty", "half"]


def templates_of(kind: str, size: int, seed: int) -> torch.Tensor:
    noise = random_templates(np.random.default_rng(seed), 2, size)
    if kind == "sigmoid of 1e4":
        return ((noise - 0.5).sign() * 1e4).sigmoid()
    if kind in ("full", "empty", "half"):
        return torch.full_like(noise, {"full": 1.0, "empty": 0.0, "half": 0.5}[kind])
    return noise.round() if kind == "binary" else noise


extent = st.sampled_from([0.0, 1.0, 0.5, 3.0, 20_000.0]) | st.floats(0, 20_000, width=32)
start = st.sampled_from([0.0, -0.5, 1.0]) | st.floats(-1, 1)


@settings(max_examples=120, deadline=None)
@given(
    image=st.sampled_from(IMAGES),
    at=st.tuples(start, start),
    sides=st.tuples(extent, extent),
    size=st.sampled_from([1, 2, 28]),
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 100),
)
def test_boxes_of_any_size_on_images_of_any_shape(
    image: tuple[int, int], at: tuple[float, float], sides: tuple[float, float], size: int, kind: str, seed: int
) -> None:
    """Starting anywhere from a whole box before the image to a whole image into it."""
    height, width = image
    x, y = (p * (length if p > 0 else side) for p, length, side in zip(at, (width, height), sides, strict=True))
    boxes = torch.tensor([[x, y, x + sides[0], y + sides[1]]] * 2)
    templates = templates_of(kind, size, seed)
    masks = paste_masks(templates, boxes, height, width)
    values = stretch_one_by_one(templates, boxes, height, width)
    if kind == "noise" or (kind == "binary" and max(sides) < 1000):
        assert_thresholded(masks, values)
    else:  # a flat template falls to one half along its whole outline, one of few values in a huge box slowly
        assert ((values[masks != (values >= 0.5)] - 0.5).abs() < 1e-6).all()
    check_encodings(templates, boxes, masks)


@pytest.mark.parametrize("size", [2, 28])
def test_equal_to_detectron2s_where_it_draws(size: int) -> None:
    """Boxes that meet the image, which is all that detectron2 can be asked for on a CPU."""
    rng = np.random.default_rng(size)
    for height, width in ((1, 1), (1, 300), (300, 1), (2, 2000), (60, 80)):
        sides = np.exp(rng.uniform(0, np.log(20_000), (12, 2)))  # from 1 to 20,000 pixels
        low = rng.uniform(-0.9 * sides, (width - 0.1, height - 0.1))
        boxes = torch.from_numpy(np.concatenate((low, low + sides), 1).astype(np.float32))
        templates = random_templates(rng, 12, size)
        ours = paste_masks(templates, boxes, height, width)
        theirs = paste_masks_in_image(templates, boxes, (height, width), threshold=0.5)
        assert int((ours != theirs).sum()) <= 1e-5 * ours.numel()
        check_encodings(templates, boxes, ours)


def test_hundreds_of_overlapping_masks() -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(-20, 10, (400, 2))
    boxes = torch.from_numpy(np.concatenate((low, low + rng.uniform(0, 90, (400, 2))), 1).astype(np.float32))
    templates = random_templates(rng, 400, 7)
    masks = paste_masks(templates, boxes, 40, 50)
    alone = torch.cat([paste_masks(t[None], b[None], 40, 50) for t, b in zip(templates, boxes, strict=True)])
    assert torch.equal(masks, alone)
    check_encodings(templates, boxes, masks)


def test_a_mask_of_400_million_pixels_is_encoded() -> None:
    """20,000 x 20,000, full, empty, and one pixel in its last corner."""
    side = 20_000
    templates = torch.stack((torch.ones(4, 4), torch.zeros(4, 4), torch.ones(4, 4)))
    whole = [-10.0 * side, -10.0 * side, 11.0 * side, 11.0 * side]
    boxes = torch.tensor([whole, whole, [side - 1.0, side - 1.0, side, side]])
    full, empty, corner = encode_templates(templates, boxes, side, side)
    assert mask_util.area([full, empty, corner]).tolist() == [side**2, 0, 1]
    assert mask_util.toBbox([full, corner]).tolist() == [[0, 0, side, side], [side - 1, side - 1, 1, 1]]
