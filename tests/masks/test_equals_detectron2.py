"""Detectron2 as the oracle: crop_and_resize, and pasting at the ends of the sizes, 1 to 20,000 pixels."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
import torchvision
from detectron2.layers import paste_masks_in_image
from detectron2.structures import BitMasks, PolygonMasks, polygons_to_bitmask
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.instances import make_templates
from meinst_d2.masks import encode_templates, paste_masks
from meinst_d2.masks.rasterize import crop_bitmask, rasterize_polygons
from tests.masks.oracle import assert_thresholded, check_encodings, random_templates, stretch_one_by_one


def detectron2_polygons(instances: list, boxes: np.ndarray, size: int) -> np.ndarray:
    return PolygonMasks(instances).crop_and_resize(torch.from_numpy(boxes), size).numpy()


share = st.floats(-1, 2, width=32)  # of the box's sides, from its corner
polygon = st.lists(st.tuples(share, share), min_size=3, max_size=12).map(np.array)
corner = st.floats(-20, 600, width=32)
extent = st.one_of(st.floats(0, 500, width=32), st.sampled_from([0.0, 0.05, 0.1, 1.0, 28.0, 56.0]))


@settings(max_examples=200, deadline=None)
@given(
    instances=st.lists(
        st.tuples(st.lists(polygon, min_size=1, max_size=3), corner, corner, extent, extent), max_size=6
    ),
    size=st.sampled_from([7, 28, 56]),
)
def test_any_polygons_give_the_same_bits(instances: list, size: int) -> None:
    boxes = np.array([[x, y, x + w, y + h] for _, x, y, w, h in instances], np.float32).reshape(-1, 4)
    polygons = [
        [(part * [max(w, 0.1), max(h, 0.1)] + [x, y]).ravel() for part in parts] for parts, x, y, w, h in instances
    ]
    assert (rasterize_polygons(polygons, boxes, size) == detectron2_polygons(polygons, boxes, size)).all()


def test_every_real_polygon_gives_the_same_bits(real_data: Path) -> None:
    count = 0
    for file in sorted(real_data.rglob("instances_*.json")):
        annotations = [a for a in read_coco_json(file) if isinstance(a.segmentation, list) and not a.iscrowd]
        boxes = np.array([a.box for a in annotations], np.float32)
        polygons = [[np.array(p, np.float64) for p in a.segmentation] for a in annotations]
        assert (rasterize_polygons(polygons, boxes, 28) == detectron2_polygons(polygons, boxes, 28)).all()
        count += len(annotations)
    assert count > 7000


@settings(max_examples=100, deadline=None)
@example(seed=328561, whole=True, size=7)
@given(seed=st.integers(0, 10**6), whole=st.booleans(), size=st.sampled_from([7, 28]))
def test_bit_masks_agree_but_for_rounding_at_one_half(seed: int, whole: bool, size: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 90, 2)
    mask = polygons_to_bitmask([rng.uniform(-10, 100, 12)], int(height), int(width))
    box = np.sort(rng.uniform(-15, 100, (2, 2)), axis=0).ravel()
    box = (box.round() if whole else box).astype(np.float32)
    theirs = BitMasks(mask[None]).crop_and_resize(torch.from_numpy(box)[None], size)[0].numpy()
    differ = crop_bitmask(mask, box, size) != theirs
    if differ.any():
        exact = torch.from_numpy(mask[None, None].astype(np.float64))
        rois = torch.cat((torch.zeros(1), torch.from_numpy(box)))[None].double()
        # Also moved by less than float32 resolves: a sample on the edge of the image counts or does not.
        moved = torch.cat([rois + torch.tensor([0.0, *[shift] * 4]) for shift in (-1e-5, 0.0, 1e-5)]).double()
        coverage = torchvision.ops.roi_align(exact, moved, size, 1.0, 0, aligned=True)[:, 0].numpy()
        assert (coverage.min(0)[differ] < 0.5 + 1e-5).all() and (coverage.max(0)[differ] > 0.5 - 1e-5).all()


def test_a_polygon_and_the_rle_of_its_pixels_make_similar_templates(real_data: Path) -> None:
    file = real_data / "coco/annotations/instances_val2017.json"
    sizes = {image["id"]: (image["height"], image["width"]) for image in json.loads(file.read_text())["images"]}
    assert len(sizes) == 80
    annotations = [
        a for a in read_coco_json(file) if not a.iscrowd and min(a.box[2] - a.box[0], a.box[3] - a.box[1]) > 60
    ]
    polygons = make_templates(annotations, 28)
    assert not polygons.skipped
    different = []
    for annotation, template in zip(annotations, polygons.masks, strict=True):
        mask = polygons_to_bitmask([np.array(p) for p in annotation.segmentation], *annotation.image_size)
        different.append((crop_bitmask(mask, annotation.box, 28) != template).mean())
    assert 0 < np.mean(different) < 0.05


IMAGES = [(1, 1), (1, 50), (50, 1), (20_000, 3), (3, 20_000), (2, 2000)]
KINDS = ["noise", "binary", "sigmoid of 1e4", "full", "empty", "half"]


def templates_of(kind: str, size: int, seed: int) -> torch.Tensor:
    noise = random_templates(np.random.default_rng(seed), 2, size)
    if kind == "sigmoid of 1e4":
        return ((noise - 0.5).sign() * 1e4).sigmoid()
    if kind in ("full", "empty", "half"):
        return torch.full_like(noise, {"full": 1.0, "empty": 0.0, "half": 0.5}[kind])
    return noise.round() if kind == "binary" else noise


reach = st.sampled_from([0.0, 1.0, 0.5, 3.0, 20_000.0]) | st.floats(0, 20_000, width=32)
start = st.sampled_from([0.0, -0.5, 1.0]) | st.floats(-1, 1)


@settings(max_examples=120, deadline=None)
@given(
    image=st.sampled_from(IMAGES),
    at=st.tuples(start, start),
    sides=st.tuples(reach, reach),
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
