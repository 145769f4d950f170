import tracemalloc
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meinst_d2.data.coco import read_coco_json
from meinst_d2.masks.rasterize import crop_bitmask
from meinst_d2.masks.rle import crop_rle, decode_rle, runs_of


def rle_of(mask: np.ndarray, compressed: bool = True) -> dict:
    if compressed:
        return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = np.concatenate(([0], mask.ravel(order="F")))
    edges = np.concatenate(((np.diff(flat) != 0).nonzero()[0], [mask.size]))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate(([0], edges))).tolist()}


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    density=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
    compressed=st.booleans(),
    whole=st.booleans(),
    size=st.sampled_from([1, 7, 28]),
)
def test_a_crop_of_runs_is_the_crop_of_the_decoded_mask(
    seed: int, density: float, compressed: bool, whole: bool, size: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 60, 2)) < density
    box = np.sort(rng.uniform(-15, 75, (2, 2)), axis=0).ravel()
    box = (box.round() if whole else box).astype(np.float32)
    rle = rle_of(mask, compressed)
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
