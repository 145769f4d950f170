from typing import Any

import numpy as np

from meinst_d2.data.augmentation import AugmentedImage, bit_mask
from meinst_d2.data.copy_paste import paste


def scene(value: int, size: tuple[int, int], *segmentations: Any, first_class: int = 0) -> AugmentedImage:
    """An image of one colour whose instances have classes in turn, with the boxes of their masks."""
    image = np.full((*size, 3), value, np.uint8)
    boxes = []
    for segmentation in segmentations:
        rows, columns = bit_mask(segmentation, size).nonzero()
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    classes = list(range(first_class, first_class + len(segmentations)))
    return AugmentedImage(image, classes, np.array(boxes, np.float32).reshape(-1, 4), list(segmentations))


def rectangle(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def polygon(x0: float, y0: float, x1: float, y1: float) -> list[np.ndarray]:
    return [np.array([x0, y0, x1, y0, x1, y1, x0, y1])]


def test_what_is_pasted_hides_what_is_below_it() -> None:
    # A ring of 6 x 6 with a hole of 2 x 2, put 1 to the right and 2 down.
    ring = rectangle((8, 8), 0, 0, 6, 6) & ~rectangle((8, 8), 2, 2, 4, 4)
    above = scene(200, (8, 8), ring, first_class=7)
    far, half, whole, in_hole = polygon(9, 0, 12, 2), polygon(5, 4, 11, 6), polygon(1, 2, 3, 4), polygon(3, 4, 5, 6)
    below = scene(50, (10, 12), far, half, whole, in_hole)
    result = paste(below, above, [0], 1, 2)

    put = np.zeros((10, 12), bool)
    put[2:, 1:9] = ring
    assert (result.image[put] == 200).all() and (result.image[~put] == 50).all()
    assert result.classes == [0, 1, 3, 7]  # the third is hidden whole
    assert result.boxes.tolist() == [[9, 0, 12, 2], [7, 4, 11, 6], [3, 4, 5, 6], [1, 2, 7, 8]]
    assert result.segmentations[0] is far and result.segmentations[2] is in_hole  # nothing touches these
    assert (result.segmentations[1] == rectangle((10, 12), 7, 4, 11, 6)).all()
    assert (result.segmentations[3] == put).all()
    assert (below.image == 50).all()


def test_what_lies_outside_is_cut_off() -> None:
    above = scene(200, (9, 9), rectangle((9, 9), 0, 0, 3, 9), rectangle((9, 9), 6, 0, 9, 9))
    result = paste(scene(50, (4, 5)), above, [0, 1], -2, -3)
    assert result.classes == [0, 1] and result.boxes.tolist() == [[0, 0, 1, 4], [4, 0, 5, 4]]
    assert paste(scene(50, (4, 5)), above, [0, 1], -3, -3).classes == [1]  # of the first nothing is left
    nothing = paste(scene(50, (4, 5), polygon(0, 0, 2, 2)), above, [], 0, 0)
    assert (nothing.image == 50).all() and nothing.classes == [0]
