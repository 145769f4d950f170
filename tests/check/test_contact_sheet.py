"""The picture of sampled annotations."""

from pathlib import Path

import numpy as np
from PIL import Image

from meinst_d2.check import annotation_rules as p
from meinst_d2.check.contact_sheet import (
    BAD,
    BOX_COLOR,
    CAPTION,
    GOOD,
    MARGIN,
    MASK_COLOR,
    TILE,
    draw_contact_sheet,
    sample_rows,
)
from meinst_d2.check.report import bad_rules
from tests.check.datasets import IMAGES, PER_IMAGE, Content, check, good_content, spoiled, write
from tests.check.test_drop import spoil


def shares(tile: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((tile == color).all(axis=-1).mean())


def tiles(path: Path, count: int) -> list[np.ndarray]:
    pixels = np.asarray(Image.open(path))
    found = []
    for number in range(count):
        line, column = divmod(number, 8)
        y, x = MARGIN + line * (TILE + CAPTION + MARGIN), MARGIN + column * (TILE + MARGIN)
        found.append(pixels[y : y + TILE + CAPTION, x : x + TILE])
    return found


def test_bad_ones_are_framed_in_red(tmp_path: Path) -> None:
    report = check(spoiled(tmp_path, spoil))
    rows = sample_rows(report.file, bad_rules(report), 24)
    bad = [bool(report.file.having(*bad_rules(report))[row]) for row in rows]
    assert len(rows) == 24 == len(set(rows)) and sum(bad) >= 12 and not all(bad)
    draw_contact_sheet(tmp_path / "sheet.png", report.file, tmp_path, bad_rules(report), 24)
    for tile, is_bad in zip(tiles(tmp_path / "sheet.png", 24), bad, strict=True):
        assert tuple(tile[0, 0]) == (BAD if is_bad else GOOD)


def test_masks_and_boxes_are_drawn_over_the_image(tmp_path: Path) -> None:
    report = check(write(tmp_path, good_content()))
    draw_contact_sheet(tmp_path / "sheet.png", report.file, tmp_path, bad_rules(report), 4)
    draw_contact_sheet(tmp_path / "grey.png", report.file, None, bad_rules(report), 4)
    for name in ("sheet", "grey"):
        for tile in tiles(tmp_path / f"{name}.png", 4):
            assert shares(tile, BOX_COLOR) > 0.01
            assert (shares(tile, (128, 128, 128)) > 0.1) == (name == "grey")
    green = tiles(tmp_path / "grey.png", 1)[0][TILE // 2, TILE // 2].astype(int)
    np.testing.assert_allclose(green, 0.6 * 128 + 0.4 * np.array(MASK_COLOR), atol=2)


def test_classes_take_turns_and_samples_may_be_few(tmp_path: Path) -> None:
    def rare(content: Content) -> None:
        for annotation in content["annotations"]:
            annotation["category_id"] = 7 if annotation["id"] == 30 else 3

    file = check(spoiled(tmp_path, rare)).file
    rows = sample_rows(file, [], 2)
    assert sorted(file.annotations[row].category for row in rows) == [0, 1]
    file = check(write(tmp_path, good_content())).file
    assert sorted(sample_rows(file, [p.NO_MASK], 100)) == list(range(IMAGES * PER_IMAGE))
    content = good_content()
    content["annotations"] = []
    empty = check(write(tmp_path, content)).file
    draw_contact_sheet(tmp_path / "empty.png", empty, tmp_path, [], 8)
    assert Image.open(tmp_path / "empty.png").size[0] > 0
