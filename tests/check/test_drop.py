"""The copy without what cannot be used, and the picture of sampled annotations."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meinst_d2.check import HURTS, contact_sheet
from meinst_d2.check import annotation_rules as p
from meinst_d2.check.coco_file import Line, require_other_file, write_without_bad
from meinst_d2.check.report import bad_rules
from tests.check.datasets import IMAGES, PER_IMAGE, Content, check, good_content, spoiled, train, write


def spoil(content: Content) -> None:
    """Everything that training stops at or leaves out, once."""
    annotations = content["annotations"]
    wrong: list[dict[str, Any]] = [
        *({"category_id": 5}, {"ignore": 1}, {"bbox": [1.0]}, {"segmentation": 3}, {"image_id": 77}),
        *({"segmentation": []}, {"segmentation": [[1, 2]]}, {"segmentation": {"size": [2, 2], "counts": [4]}}),
        *({"bbox": box} for box in ([70.0, 4, 5, 5], [30.0, 30, -5, 5], [4.0, 4, 0, 5], [4.0, 4.0, 10.0, 10.0])),
    ]
    template = annotations[1]
    annotations[:0] = [{**template, "id": 1000 + n, **values} for n, values in enumerate(wrong)]
    annotations[3:3] = [None, {"id": 5}]
    annotations.append({**template, "id": 20, "note": "kept"})  # an id that is taken
    annotations.append({**template, "id": 99, "iscrowd": 1})
    content["images"][4]["height"] += 1
    content["licenses"] = [{"id": 1, "name": "caf\u00e9 \ud800"}]
    content["info"] = {"year": 2026, "nested": [1, {"a": None}]}
    content["empty"] = []


def done(lines: list[Line], section: str, what: str = "left out") -> int:
    return sum(line.section == section and line.done == what for line in lines)


def test_the_copy_trains_and_is_otherwise_the_same(tmp_path: Path) -> None:
    path = spoiled(tmp_path, spoil)
    before = path.read_bytes()
    report = check(path)
    assert report.severity == 2
    out = tmp_path / "new/usable.json"
    _, lines = write_without_bad(report.file, out)
    old, new = json.loads(before), json.loads(out.read_text())
    assert path.read_bytes() == before and list(new) == list(old)
    assert {key: new[key] for key in ("licenses", "info", "empty", "categories")} == {
        key: old[key] for key in ("licenses", "info", "empty", "categories")
    }
    assert new["images"] == old["images"][:4]
    good = [a for a in good_content()["annotations"] if a["image_id"] != 5]
    assert new["annotations"][:-2] == good
    again, crowd = new["annotations"][-2:]
    assert again == {**good[1], "id": 1012, "note": "kept"} and crowd["id"] == 99
    assert done(lines, "annotations") == 14 + PER_IMAGE and done(lines, "images") == 1
    (tmp_path / "new/train.json").write_text(out.read_text())
    for number in range(1, IMAGES + 1):
        (tmp_path / f"new/{number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes())
    assert check(out).severity <= HURTS  # two squares at one place
    assert [len(instances) for instances in train(out).values()] == [PER_IMAGE + 1, PER_IMAGE, PER_IMAGE, PER_IMAGE]


def test_everything_that_is_left_out_is_listed(tmp_path: Path) -> None:
    report = check(spoiled(tmp_path, spoil))
    list_path, lines = write_without_bad(report.file, tmp_path / "usable.json")
    assert list_path == tmp_path / "usable.dropped.csv"
    with open(list_path, newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["section", "number", "what", "done", "why"]
    assert rows[1] == ["images", "4", "image 5 (5.png)", "left out", "image-other-size"]
    assert len(rows) == 1 + 1 + 14 + PER_IMAGE + 1 == 1 + len(lines)
    why = {row[4] for row in rows[2:]}
    assert {"annotation-no-object", "unknown-category", "mask-empty", "box-outside", "rle-wrong-size"} <= why
    assert {"its image was left out", "annotation-id-repeated"} <= why
    assert [row[3] for row in rows if row[4] == "annotation-id-repeated"] == ["new id"]


def test_a_good_file_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, good_content())
    _, lines = write_without_bad(check(path).file, tmp_path / "copy.json")
    assert json.loads((tmp_path / "copy.json").read_text()) == good_content() and not lines
    path = write(tmp_path, good_content())
    file = check(path).file
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="cut off"):
        write_without_bad(file, tmp_path / "half.json")
    assert not list(tmp_path.glob("*half*"))


@pytest.mark.parametrize("name", ["train.json", "sub/../train.json", "link.json"])
def test_the_file_itself_is_never_overwritten(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, good_content())
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.json").symlink_to(path)
    file = check(path).file
    for refuse in (lambda: require_other_file(path, tmp_path / name), lambda: write_without_bad(file, tmp_path / name)):
        with pytest.raises(ValueError, match="is the file that is read"):
            refuse()
    assert json.loads(path.read_text()) == good_content()


def shares(tile: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((tile == color).all(axis=-1).mean())


def tiles(path: Path, count: int) -> list[np.ndarray]:
    pixels = np.asarray(Image.open(path))
    found = []
    for number in range(count):
        line, column = divmod(number, 8)
        y, x = (
            contact_sheet.MARGIN + line * (contact_sheet.TILE + contact_sheet.CAPTION + contact_sheet.MARGIN),
            contact_sheet.MARGIN + column * (contact_sheet.TILE + contact_sheet.MARGIN),
        )
        found.append(pixels[y : y + contact_sheet.TILE + contact_sheet.CAPTION, x : x + contact_sheet.TILE])
    return found


def test_bad_ones_are_framed_in_red(tmp_path: Path) -> None:
    report = check(spoiled(tmp_path, spoil))
    rows = contact_sheet.sample_rows(report.file, bad_rules(report), 24)
    bad = [bool(report.file.having(*bad_rules(report))[row]) for row in rows]
    assert len(rows) == 24 == len(set(rows)) and sum(bad) >= 12 and not all(bad)
    contact_sheet.draw_contact_sheet(tmp_path / "sheet.png", report.file, tmp_path, bad_rules(report), 24)
    for tile, is_bad in zip(tiles(tmp_path / "sheet.png", 24), bad, strict=True):
        assert tuple(tile[0, 0]) == (contact_sheet.BAD if is_bad else contact_sheet.GOOD)


def test_masks_and_boxes_are_drawn_over_the_image(tmp_path: Path) -> None:
    report = check(write(tmp_path, good_content()))
    contact_sheet.draw_contact_sheet(tmp_path / "sheet.png", report.file, tmp_path, bad_rules(report), 4)
    contact_sheet.draw_contact_sheet(tmp_path / "grey.png", report.file, None, bad_rules(report), 4)
    for name in ("sheet", "grey"):
        for tile in tiles(tmp_path / f"{name}.png", 4):
            assert shares(tile, contact_sheet.BOX_COLOR) > 0.01
            assert (shares(tile, (128, 128, 128)) > 0.1) == (name == "grey")
    green = tiles(tmp_path / "grey.png", 1)[0][contact_sheet.TILE // 2, contact_sheet.TILE // 2].astype(int)
    np.testing.assert_allclose(green, 0.6 * 128 + 0.4 * np.array(contact_sheet.MASK_COLOR), atol=2)


def test_a_mask_too_large_to_show_is_a_tile_without_it(tmp_path: Path) -> None:
    def huge_box(content: Content) -> None:
        rle = {"size": [48, 64], "counts": [0, 3072]}
        content["annotations"][0] |= {"bbox": [0.0, 0.0, 9e5, 9e5], "segmentation": rle}

    report = check(spoiled(tmp_path, huge_box))
    contact_sheet.draw_contact_sheet(tmp_path / "sheet.png", report.file, None, [], 48)
    assert all(
        tuple(tile[0, 0]) == contact_sheet.GOOD for tile in tiles(tmp_path / "sheet.png", len(report.file.flags))
    )


def test_classes_take_turns_and_samples_may_be_few(tmp_path: Path) -> None:
    def rare(content: Content) -> None:
        for annotation in content["annotations"]:
            annotation["category_id"] = 7 if annotation["id"] == 30 else 3

    file = check(spoiled(tmp_path, rare)).file
    rows = contact_sheet.sample_rows(file, [], 2)
    assert sorted(file.annotations[row].category for row in rows) == [0, 1]
    file = check(write(tmp_path, good_content())).file
    assert sorted(contact_sheet.sample_rows(file, [p.NO_MASK], 100)) == list(range(IMAGES * PER_IMAGE))
    content = good_content()
    content["annotations"] = []
    empty = check(write(tmp_path, content)).file
    contact_sheet.draw_contact_sheet(tmp_path / "empty.png", empty, tmp_path, [], 8)
    assert Image.open(tmp_path / "empty.png").size[0] > 0
