from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from meinst_d2.masks import RLEs
from meinst_d2.modeling.tiles import DetectorInTiles, Part, _is_seen_better, _rle_of, join, tile_windows
from tests.models import tiny_cfg, tiny_model


class Bright(torch.nn.Module):
    """A detector without errors: everything that is bright and hangs together is an object; red ones are of class 1."""

    mask_output = "bitmask"

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (given,) = inputs
        image = given["image"].numpy()
        assert max(image.shape[1:]) <= 64
        count, labels = cv2.connectedComponents((image.max(axis=0) > 100).astype(np.uint8))
        masks = [labels == i for i in range(1, count)]
        rles = [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
        found = Instances((given["height"], given["width"]))
        boxes = np.array([coco_mask.toBbox(rle) for rle in rles], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(torch.from_numpy(boxes))
        areas = torch.tensor([mask.sum() for mask in masks], dtype=torch.float32)
        found.scores = areas / (areas + 1)  # more is seen of an object, more certain it is
        found.pred_classes = torch.tensor([int(image[1][mask].max() < 100) for mask in masks], dtype=torch.int64)
        assert self.mask_output == "rle"
        found.pred_masks_rle = RLEs(rles)
        return [{"instances": found}]


def in_tiles(size: int = 64, overlap: float = 0.25, **options: Any) -> DetectorInTiles:
    unchanged = T.NoOpTransform()
    defaults = {"size": size, "overlap": overlap, "resize": T.AugmentationList([unchanged]), "image_format": "RGB"}
    return DetectorInTiles(Bright(), **(defaults | options))


@pytest.fixture
def scene() -> tuple[np.ndarray, list[np.ndarray]]:
    """An image with a ring, bars that are longer than a tile, discs of two classes, and the mask of each."""
    height, width = 150, 200
    y, x = np.mgrid[:height, :width] + 0.5
    radius = np.hypot(x - 62, y - 60)
    masks = [
        (radius < 20) & (radius > 10),
        (abs(y - 110) < 4) & (abs(x - 100) < 96),
        (abs(x - 150) < 3) & (y < 100),
        (abs(x - 120 - y / 3) < 2) & (y > 118) & (y < 148),
        *(np.hypot(x - a, y - b) < 7 for a in (10, 100, 115.5, 130) for b in (10, 50, 66, 85)),
    ]
    image = np.zeros((height, width, 3), np.uint8)
    for i, mask in enumerate(masks):
        image[mask] = (200, 200 * (i % 3 > 0), 0)
    return image, masks


def test_tiles_cover_an_image_and_share_what_they_must() -> None:
    assert tile_windows(30, 100, 40, 0.25) == [(slice(0, 30), slice(at, at + 40)) for at in (0, 30, 60)]
    assert tile_windows(40, 40, 40, 0.25) == [(slice(0, 40), slice(0, 40))]
    starts = [columns.start for _, columns in tile_windows(640, 1000, 640, 0.2)]
    assert starts == [0, 360]  # spread evenly: they share more
    for length in range(41, 200, 7):
        starts = [columns.start for _, columns in tile_windows(40, length, 40, 0.25)]
        assert starts[0] == 0 and starts[-1] == length - 40 and min(np.diff(starts)) >= 1 and max(np.diff(starts)) <= 30


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_an_object_across_seams_comes_out_whole(scene: tuple[np.ndarray, list[np.ndarray]], overlap: float) -> None:
    image, masks = scene
    given = [{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}]
    found = in_tiles(overlap=overlap)(given)[0]["instances"]
    assert len(found) == len(masks) and (found.scores.diff() <= 0).all()
    order = [next(i for i, mask in enumerate(masks) if (mask == one).all()) for one in found.pred_masks.numpy()]
    assert sorted(order) == list(range(len(masks)))
    assert found.pred_classes.tolist() == [int(i % 3 == 0) for i in order]
    rows, columns = masks[1].nonzero()
    long = found.pred_boxes.tensor[order.index(1)].tolist()
    assert long == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    encoded = in_tiles(overlap=overlap, mask_output="rle")(given)[0]["instances"]
    assert torch.equal(encoded.scores, found.scores)
    decoded = coco_mask.decode(list(encoded.pred_masks_rle)).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded, found.pred_masks.numpy())


def part(x0: int, x1: int, score: float, tile: int, *, cut: bool, label: int = 0, y0: int = 0, y1: int = 10) -> Part:
    """A rectangle of the first tile, columns 0 to 60 of an image of 100 rows, or of the second, 40 to 100."""
    window = (slice(0, 100), slice(0, 60) if tile == 0 else slice(40, 100))
    at, box = (slice(y0, y1), slice(x0, x1)), np.array([x0, y0, x1, y1], np.float32)
    return Part(window, score, label, box, at, np.ones((y1 - y0, x1 - x0), bool), cut)


def spans(parts: list[Part]) -> list[tuple[int, int, float]]:
    return sorted((part.at[1].start, part.at[1].stop, part.score) for part in parts)


def test_which_parts_are_of_one_object() -> None:
    left, right = part(30, 60, 0.8, 0, cut=True), part(40, 90, 0.9, 1, cut=True)
    assert spans(join([left, right])) == [(30, 90, 0.9)]
    assert len(join([left, part(40, 90, 0.9, 1, cut=True, label=1)])) == 2  # of other classes
    # What both see differs: neighbours, one above the other, whose boxes overlap by a third.
    above, below = part(30, 60, 0.8, 0, cut=True, y1=12), part(40, 90, 0.9, 1, cut=True, y0=8, y1=20)
    assert len(join([above, below])) == 2
    whole, again = part(42, 58, 0.6, 0, cut=False), part(42, 57, 0.7, 1, cut=False)
    assert spans(join([whole, again])) == [(42, 57, 0.7)]
    # A tile that sees a whole object knows more than one that sees a part, whatever their scores.
    seen_whole, sliver = part(20, 55, 0.6, 0, cut=False), part(40, 46, 0.9, 1, cut=True)
    assert spans(join([seen_whole, sliver])) == [(20, 55, 0.6)]
    # Two neighbours that touch, each in both tiles: each finds the other part of itself.
    pairs = [part(30, 60, 0.8, 0, cut=True, y0=y, y1=y + 10) for y in (0, 10)]
    pairs += [part(40, 80, 0.9, 1, cut=True, y0=y, y1=y + 10) for y in (1, 9)]
    assert spans(join(pairs)) == [(30, 80, 0.9)] * 2
    assert join([]) == []


def test_the_tile_that_sees_an_object_farthest_from_its_borders_counts() -> None:
    windows = [(slice(0, 100), slice(0, 60)), (slice(0, 100), slice(40, 100))]

    def better(*args: Any) -> bool:
        return _is_seen_better(part(*args, cut=False), windows, (100, 100))

    assert better(50, 58, 0.9, 0) and not better(50, 58, 0.9, 1)  # 2 and 10 pixels from the borders
    assert better(42, 46, 0.9, 1) and not better(42, 46, 0.9, 0)
    assert not better(46, 54, 0.9, 0) and not better(46, 54, 0.9, 1)  # 6 from both
    assert not better(20, 59, 0.9, 0)  # the other does not see all of it
    assert not better(0, 10, 0.9, 0)  # at the border of the image nothing is cut


def test_encodings_without_a_mask_of_the_images_size() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        height, width = random.integers(1, 12, 2)
        rows, columns = (slice(*sorted(random.choice(n + 1, 2, replace=False))) for n in (height, width))
        mask = random.random((rows.stop - rows.start, columns.stop - columns.start)) < random.choice([0.5, 1.0])
        mask[random.integers(len(mask)), random.integers(mask.shape[1])] = True
        whole = np.zeros((height, width), np.uint8)
        whole[rows, columns] = mask
        one = Part((rows, columns), 1.0, 0, np.zeros(4, np.float32), (rows, columns), mask, False)
        assert _rle_of(one, int(height), int(width)) == coco_mask.encode(np.asfortranarray(whole))


def test_one_tile_is_the_detector() -> None:
    low = ("MODEL.MEINST.SCORE_THRESH_TEST", 0.0099, "TEST.TILES.SIZE", 200, "INPUT.MIN_SIZE_TEST", 64)
    model = tiny_model(*low).eval()
    image = (torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255).byte()
    found = DetectorInTiles(tiny_cfg(*low), model).eval()([{"image": image}])[0]["instances"]
    plain = model([{"image": image}])[0]["instances"]
    plain = plain[plain.pred_masks.flatten(1).any(dim=1)]
    assert len(found) == len(plain) > 10 and torch.equal(found.scores, plain.scores.sort(descending=True).values)
    assert found.pred_masks.sum() == plain.pred_masks.sum()


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"TEST.TILES: SIZE = 64 must be at least 1, OVERLAP = 1.0"):
        in_tiles(overlap=1.0)
    with pytest.raises(ValueError, match="joined masks are not templates"):
        in_tiles(mask_output="template")
