"""Encodings: byte for byte those of pycocotools, found without the mask of the whole image."""

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.data.coco import read_coco_json
from meinst_d2.masks import RLEs, encode_masks, encode_templates
from meinst_d2.masks.rasterize import crop_bitmask
from meinst_d2.masks.rle import areas, crop_rle, decode_rle, ious, rle_of, runs_of
from tests.masks.oracle import random_templates


def encode_whole(masks: np.ndarray) -> list[dict]:
    return [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 8), width=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_any_mask_even_outside_its_box(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((3, height, width)) < rng.random((3, 1, 1))
    assert encode_masks(masks, rng.uniform(-2, 10, (3, 4)).astype(np.float32)) == encode_whole(masks)


def test_what_there_is_at_the_ends_of_the_image() -> None:
    """Every mask of 2 x 3 pixels: first and last run empty or not."""
    masks = np.array(list(itertools.product((False, True), repeat=6))).reshape(-1, 2, 3)
    assert encode_masks(masks, np.tile(np.float32([0, 0, 3, 2]), (64, 1))) == encode_whole(masks)


def test_areas_and_overlaps(rng: np.random.Generator) -> None:
    masks = rng.random((5, 9, 7)) < 0.4
    rles = [rle_of(mask, (9, 7)) for mask in masks]
    assert rles == encode_whole(masks)
    both = (masks[:2, None] & masks[None, 2:]).sum((2, 3))
    either = (masks[:2, None] | masks[None, 2:]).sum((2, 3))
    assert areas(rles).tolist() == masks.sum((1, 2)).tolist() and areas([]).tolist() == []
    np.testing.assert_allclose(ious(rles[:2], rles[2:]), both / either)
    np.testing.assert_allclose(ious(rles[:2], rles[2:], crowd=True), both / areas(rles[:2])[:, None])
    assert ious([], rles).shape == (0, 5) and ious(rles, []).shape == (5, 0)


def test_a_large_image_needs_little_memory() -> None:
    """50 objects that fill an image of 12 megapixels: their bit masks would take 600 MB."""
    templates = random_templates(np.random.default_rng(0), 50, 28)
    boxes = torch.tensor([[10.0, 10.0, 3990.0, 2990.0]]).repeat(50, 1)
    tracemalloc.start()
    rles = encode_templates(templates, boxes, 3000, 4000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rles) == 50 and peak < 30e6


def test_encodings_are_indexed_like_a_tensor() -> None:
    rles = RLEs({"size": [1, 1], "counts": bytes([65 + i])} for i in range(4))

    def letters(chosen: RLEs) -> bytes:
        assert isinstance(chosen, RLEs)
        return b"".join(rle["counts"] for rle in chosen)

    assert rles[1]["counts"] == b"B" and rles[-1]["counts"] == b"D" and letters(rles[1:3]) == b"BC"
    assert letters(rles[torch.tensor([True, False, False, True])]) == b"AD"
    assert letters(rles[torch.tensor([2, 0])]) == b"CA"
    assert letters(rles[np.array([3])]) == b"D" and letters(rles[[1, 1]]) == b"BB"
    assert letters(rles[torch.tensor([], dtype=torch.int64)]) == b""
    assert json.dumps([rle["size"] for rle in rles]) == "[[1, 1], [1, 1], [1, 1], [1, 1]]"


def encoded(mask: np.ndarray, compressed: bool = True) -> dict:
    if compressed:
        return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    edges = np.concatenate(((np.diff(np.concatenate(([0], mask.ravel(order="F")))) != 0).nonzero()[0], [mask.size]))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate(([0], edges))).tolist()}


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
    compressed=st.booleans(),
    whole=st.booleans(),
    size=st.sampled_from([1, 7, 28]),
)
def test_crops_of_runs_and_of_masks(seed: int, density: float, compressed: bool, whole: bool, size: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 60, 2)) < density
    box = np.sort(rng.uniform(-15, 75, (2, 2)), axis=0).ravel()
    box = (box.round() if whole else box).astype(np.float32)
    rle = encoded(mask, compressed)
    assert (decode_rle(rle, *mask.shape) == mask).all()
    assert (crop_rle(rle, *mask.shape, box, size) == crop_bitmask(mask, box, size)).all()


def test_real_objects_as_runs_are_cropped_like_their_pixels(real_data: Path) -> None:
    annotations = read_coco_json(real_data / "coco/annotations/instances_val2017.json")
    polygons = [a for a in annotations if isinstance(a.segmentation, list)]
    for scale in (1, 4):
        for a in polygons[:: 5 * scale]:
            height, width = (side * scale for side in a.image_size)
            rle = mask_util.merge(mask_util.frPyObjects([p * scale for p in a.segmentation], height, width))
            mask, box = mask_util.decode(rle), np.array(a.box, np.float32) * scale
            assert (crop_rle(rle, height, width, box, 28) == crop_bitmask(mask, box, 28)).all()
    crowds = [a for a in annotations if a.iscrowd]
    for a in crowds:
        rle = mask_util.frPyObjects(a.segmentation, *a.image_size)
        assert (decode_rle(a.segmentation, *a.image_size) == mask_util.decode(rle)).all()
    assert len(crowds) == 11


def test_a_crop_takes_memory_for_its_box_and_not_for_the_image() -> None:
    height, width = 2, 2**24
    tracemalloc.start()
    crop = crop_rle({"size": [height, width], "counts": [0, height * width]}, height, width, (5, 0, 9, 2), 4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert crop.all() and peak < 2**20


def test_counts_may_be_text() -> None:
    rle = mask_util.encode(np.asfortranarray(np.eye(50, dtype=np.uint8)))
    assert (decode_rle({"size": [50, 50], "counts": rle["counts"].decode()}, 50, 50) == np.eye(50)).all()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [4, 5], "counts": [20]}, r"size \[4, 5\] in an image of 4 x 4"),
        ({"counts": [16]}, "size None"),
        ({"size": [4, 4], "counts": [15]}, "do not add up to 4 x 4"),
        ({"size": [4, 4], "counts": [10, -2, 8]}, "do not add up"),
        ({"size": [4, 4], "counts": [8.0, 8.0]}, "do not add up"),
        ({"size": [4, 4], "counts": None}, "counts of type NoneType"),
        ({"size": [4, 4], "counts": "`"}, "end within a run"),
        ({"size": [4, 4], "counts": "\x01"}, "not compressed runs"),
        ({"size": [4, 4], "counts": "ooooooooo0"}, "not compressed runs"),
        ({"size": [4, 4], "counts": "``0"}, "do not add up"),
    ],
)
def test_malformed_rles_are_refused(rle: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rle(rle, 4, 4)


@given(counts=st.one_of(st.binary(max_size=40), st.text(max_size=20), st.lists(st.integers(), max_size=5)))
def test_any_counts_are_runs_or_refused(counts: bytes | str | list[int]) -> None:
    try:
        runs = runs_of({"size": [4, 4], "counts": counts}, 4, 4)
    except ValueError:
        return
    assert runs.sum() == 16 and (runs >= 0).all()
