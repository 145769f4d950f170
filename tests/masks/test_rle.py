"""Encodings: byte for byte those of pycocotools, found without the mask of the whole image."""

import itertools
import json
import tracemalloc

import numpy as np
import pycocotools.mask as mask_util
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.masks import RLEs, encode_masks, encode_templates
from meinst_d2.masks.rle import areas, ious, rle_of
from tests.masks.oracle import random_templates


def encode_whole(masks: np.ndarray) -> list[dict]:
    return [mask_util.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 8), width=st.integers(1, 8), seed=st.integers(0, 10**6))
def test_any_mask_even_outside_its_box(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((3, height, width)) < rng.random((3, 1, 1))
    boxes = rng.uniform(-2, 10, (3, 4)).astype(np.float32)
    assert encode_masks(masks, boxes) == encode_whole(masks)


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

    assert rles[1]["counts"] == b"B" and rles[-1]["counts"] == b"D"
    assert letters(rles[1:3]) == b"BC"
    assert letters(rles[torch.tensor([True, False, False, True])]) == b"AD"
    assert letters(rles[torch.tensor([2, 0])]) == b"CA"
    assert letters(rles[np.array([3])]) == b"D" and letters(rles[[1, 1]]) == b"BB"
    assert letters(rles[torch.tensor([], dtype=torch.int64)]) == b""
    assert json.dumps([rle["size"] for rle in rles]) == "[[1, 1], [1, 1], [1, 1], [1, 1]]"
