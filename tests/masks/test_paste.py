"""Pasting: Detectron2's result, by looking at runs instead of pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.masks import encode_masks, encode_templates, paste, paste_masks, runs
from tests.masks.oracle import assert_thresholded, check_encodings, random_templates, stretch_one_by_one

EDGES = {
    "inside": [3.2, 4.1, 20.7, 15.5],
    "leaves on the left and above": [-13.3, -7.9, 9.5, 8.2],
    "leaves on the right and below": [22.2, 11.1, 55.5, 44.4],
    "covers the image": [-100.0, -50.0, 130.0, 70.0],
    "is the image": [0.0, 0.0, 32.0, 24.0],
    "lies between two pixel centres": [5.6, 7.6, 6.4, 8.4],
    "covers one pixel centre": [5.4, 7.4, 5.6, 7.6],
    "is thin": [4.0, 0.3, 4.9, 23.0],
    "is flat": [0.3, 4.0, 31.0, 4.2],
    "is outside": [40.0, 30.0, 60.0, 50.0],
    "has no area": [5.0, 5.0, 5.0, 9.0],
    "is turned round": [9.0, 9.0, 5.0, 5.0],
    "is not finite": [float("nan"), 1.0, float("inf"), 9.0],
    "is huge": [-3e6, -1e30, 5e6, 2e30],
}


@pytest.mark.parametrize("size", [1, 2, 7, 28])
@pytest.mark.parametrize("box", EDGES.values(), ids=EDGES.keys())
def test_a_box_that(box: list[float], size: int) -> None:
    templates = random_templates(np.random.default_rng(size), 4, size)
    boxes = torch.tensor([box] * 4)
    for height, width in ((24, 32), (1, 1), (1, 40), (40, 1)):
        ours = paste_masks(templates, boxes, height, width)
        assert_thresholded(ours, stretch_one_by_one(templates, boxes, height, width))
        check_encodings(templates, boxes, ours)
        full = torch.ones_like(templates)  # a run over many columns where the box is as high as the image
        check_encodings(full, boxes, paste_masks(full, boxes, height, width))


def test_full_and_empty_templates() -> None:
    boxes = torch.tensor([[2.0, 3.0, 8.0, 7.0], [2.0, 3.0, 8.0, 7.0]])
    full, empty = paste_masks(torch.stack((torch.ones(28, 28), torch.zeros(28, 28))), boxes, 10, 12)
    assert full[3:7, 2:8].all() and full.sum() == 24 and not empty.any()


def test_several_runs_in_a_line() -> None:
    """A comb: worked out by hand, one template pixel is two image pixels."""
    (mask,) = paste_masks(torch.tensor([[[1.0, 0, 1, 0]] * 4]), torch.tensor([[0.0, 0.0, 8.0, 8.0]]), 8, 8)
    assert mask[4].tolist() == [True, True, False, False, True, True, False, False]


def test_pixels_that_are_not_numbers_are_background() -> None:
    templates = random_templates(np.random.default_rng(0), 1, 6)
    templates[0, 2] = float("nan")
    boxes = torch.tensor([[1.3, 2.2, 30.1, 20.7]])
    assert torch.equal(paste_masks(templates, boxes, 24, 32), paste_masks(templates.nan_to_num(0), boxes, 24, 32))


def test_nothing_to_paste_or_encode() -> None:
    nothing = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    masks = paste_masks(*nothing, 30, 40)
    assert masks.shape == (0, 30, 40) and encode_templates(*nothing, 30, 40) == []
    assert encode_masks(masks.numpy(), nothing[1].numpy()) == []


def test_the_result_is_an_ordinary_tensor() -> None:
    """It outlives the call, can be written to, and none of it is shared with another one."""
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    first, second = (paste_masks(torch.ones(1, 3, 3), boxes, 6, 6) for _ in range(2))
    first |= True
    assert first.all() and second.sum() == 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    """Half precision knows pixels of a large image only to the next 8 or 128: still a box."""
    wide = torch.tensor([[-15_000.3, 2.2, 15_000.1, 20.7], [3.3, -7.1, 30.7, 14.2]], dtype=dtype)
    arguments = random_templates(np.random.default_rng(0), 2, 28), wide, 24, 32
    assert torch.equal(paste_masks(*arguments), paste_masks(arguments[0], wide.float(), 24, 32))
    assert encode_templates(*arguments) == encode_templates(arguments[0], wide.float(), 24, 32)
    templates = random_templates(np.random.default_rng(3), 5, 28).to(dtype)
    boxes = torch.tensor([[1.3, 2.2, 30.1, 20.7]]).repeat(5, 1)
    assert torch.equal(paste_masks(templates, boxes, 24, 32), paste_masks(templates.float(), boxes, 24, 32))


def test_portions_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    templates = random_templates(rng, 30, 28)
    boxes = torch.from_numpy(np.sort(rng.uniform(-20, 120, (30, 2, 2)), 1).reshape(30, 4).astype(np.float32))
    results = []
    for lines in (2048, 100, 1):
        monkeypatch.setattr(runs, "LINES_AT_ONCE", lines)
        results.append(paste_masks(templates, boxes, 90, 100))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.fixture
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    kept: list[np.ndarray] = []
    monkeypatch.setattr(paste, "_kept", kept)
    return kept


def test_memory_is_kept_for_the_next_image_and_cleared(nothing_kept: list[np.ndarray]) -> None:
    templates, boxes = torch.ones(3, 28, 28), torch.tensor([[1.0, 2.0, 30.0, 20.0]] * 3)
    first = paste_masks(templates, boxes, 24, 32)
    address = first.data_ptr()
    first[:] = True  # a user may paint on it
    del first
    assert [memory.ctypes.data for memory in nothing_kept] == [address]
    second = paste_masks(templates, boxes + 1, 20, 32)
    assert second.data_ptr() == address and not nothing_kept
    assert second.sum() == 3 * 29 * 17 and second[0, 3:20, 2:31].all()


def test_memory_in_use_is_not_taken(nothing_kept: list[np.ndarray]) -> None:
    """Not even where only a part of the masks, or their numbers, are in use."""
    boxes = torch.tensor([[1.0, 2.0, 30.0, 20.0]] * 3)
    whole = paste_masks(torch.ones(3, 28, 28), boxes, 24, 32)
    expected = whole[1:].clone()
    part = whole[1:]
    numbers = part.numpy()[0]
    del whole, part
    for _ in range(3):
        assert not paste_masks(torch.zeros(3, 28, 28), boxes, 24, 32).any()
    assert (numbers == expected[0].numpy()).all()


def test_the_larger_of_two_memories_is_kept(nothing_kept: list[np.ndarray]) -> None:
    sizes = (100, 3000, 800)
    masks = [paste_masks(torch.ones(1, 4, 4), torch.tensor([[0.0, 0.0, 9.0, 9.0]]), size, size) for size in sizes]
    addresses = [mask.data_ptr() for mask in masks]
    masks.clear()
    assert [memory.ctypes.data for memory in nothing_kept] == [addresses[1]]


def test_a_stack_too_large_to_keep(nothing_kept: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paste, "KEEP_AT_MOST", 1000)
    templates = random_templates(np.random.default_rng(0), 3, 28)
    boxes = torch.tensor([[1.3, 2.2, 30.1, 20.7]] * 3)
    for _ in range(2):
        assert_thresholded(paste_masks(templates, boxes, 24, 32), stretch_one_by_one(templates, boxes, 24, 32))
    assert not nothing_kept


sides = st.integers(1, 90)
corner = st.floats(-60, 120, width=32) | st.integers(-10, 60).map(float)


@settings(max_examples=150, deadline=None)
@given(height=sides, width=sides, box=st.tuples(corner, corner, corner, corner), size=st.integers(1, 12), seed=sides)
def test_any_box(height: int, width: int, box: tuple[float, ...], size: int, seed: int) -> None:
    """Binary templates have values of exactly one half, on which painting and encoding must agree."""
    templates = random_templates(np.random.default_rng(seed), 2, size)
    boxes = torch.tensor([box] * 2)
    masks = paste_masks(templates, boxes, height, width)
    assert_thresholded(masks, stretch_one_by_one(templates, boxes, height, width))
    for painted in (templates, templates.round()):
        check_encodings(painted, boxes, paste_masks(painted, boxes, height, width))
