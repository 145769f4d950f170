"""Images, categories and whole files: what is said of them, and what training really does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from meinst_d2.check import FINE, STOPS, Rule
from meinst_d2.check import image_rules as ip
from meinst_d2.check.coco_file import scan
from meinst_d2.data.coco import read_category_names
from meinst_d2.data.image_files import read_image
from tests.check.datasets import (
    HEIGHT,
    IMAGES,
    PER_IMAGE,
    WIDTH,
    Content,
    ap_of_the_truth,
    check,
    finding,
    good_content,
    spoiled,
    train,
    write,
)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path, good_content())


def drop_annotations_of(content: Content, image: int) -> None:
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != image]


def test_a_missing_file(good: Path) -> None:
    (good.parent / "2.png").unlink()
    found = finding(check(good), ip.MISSING.key)
    assert (found.count, found.examples, found.severity) == (1, ["image 2 (2.png)"], STOPS)
    with pytest.raises(FileNotFoundError):
        train(good)
    assert check(good, images=False).severity == 0
    with pytest.raises(NotADirectoryError, match="no folder of images"):
        ip.check_images(scan(good), good.parent / "nowhere")


def test_a_missing_file_of_an_image_without_objects(tmp_path: Path) -> None:
    path = spoiled(tmp_path, lambda content: drop_annotations_of(content, 2))
    (tmp_path / "2.png").unlink()
    assert "1 of them have no objects" in finding(check(path), ip.MISSING.key).note
    assert set(train(path)) == {1, 3, 4, 5}


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("train/{}.png", "without the folders that file_name gives"),
        (r"C:\train\{}.png", "without the folders that file_name gives"),
        (r"..\{folder}\{}.png", "with / for "),
        ("%2e/{}.png", "without URL-encoding (%20 for a space)"),
        ("{}.PNG", "with other letters in upper and lower case"),
        ("{}.jpg", "with the extension .png"),
        ("a/{}.JPEG", "with the extension .png"),
        ("image {}.png", ""),
    ],
)
def test_files_that_are_there_under_another_name(good: Path, name: str, hint: str) -> None:
    content = good_content()
    for image in content["images"]:
        image["file_name"] = name.format(image["id"], folder=good.parent.name)
    good.write_text(json.dumps(content))
    found = finding(check(good), ip.MISSING.key)
    assert hint in found.note and bool(found.note) == bool(hint)
    example = str(good.parent / content["images"][0]["file_name"])
    assert found.fix == (
        "correct file_name, or name the folder that it is relative to"
        if hint
        else f"name the folder that file_name is relative to: {example} was looked for"
    )


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_no_image_in_a_file(good: Path, content: bytes) -> None:
    (good.parent / "2.png").write_bytes(content)
    assert finding(check(good), ip.UNREADABLE.key).count == 1
    with pytest.raises(OSError):
        train(good)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_decoding_finds_files_that_are_cut_off(tmp_path: Path, suffix: str) -> None:
    path = spoiled(tmp_path, lambda content: content["images"][1].update(file_name=f"cut.{suffix}"))
    Image.open(tmp_path / "2.png").save(tmp_path / f"cut.{suffix}")
    whole = (tmp_path / f"cut.{suffix}").read_bytes()
    (tmp_path / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    assert check(path).severity == 0
    assert finding(check(path, decode=True), ip.UNREADABLE.key).count == 1
    with pytest.raises(OSError):
        train(path)


@pytest.mark.parametrize("decode", [False, True])
def test_another_size(good: Path, decode: bool) -> None:
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(good.parent / "2.png")
    assert finding(check(good, decode=decode), ip.OTHER_SIZE.key).severity == STOPS
    with pytest.raises(SizeMismatchError):
        train(good)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images(tmp_path: Path, orientation: int, suffix: str, decode: bool) -> None:
    path = spoiled(tmp_path, lambda content: content["images"][1].update(file_name=f"exif.{suffix}"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"exif.{suffix}", exif=exif)
    report = check(path, decode=decode)
    turned = read_image(str(tmp_path / f"exif.{suffix}"), "RGB").shape[:2] == (WIDTH, HEIGHT)
    assert turned == (orientation > 4)
    assert report.severity == (STOPS if turned else FINE)
    if orientation > 1:
        finding(report, ip.ROTATED.key)
    if turned:
        with pytest.raises(SizeMismatchError):
            train(path)
    else:
        assert len(train(path)) == IMAGES


def test_an_image_id_and_a_file_twice(tmp_path: Path) -> None:
    path = spoiled(tmp_path, lambda content: content["images"][4].update(id=2))
    report = check(path)
    found = finding(report, ip.REPEATED_IMAGE_ID.key)
    assert found.examples == ["image 2 (2.png)"] and "later image" in found.effect
    assert [report.file.names[row] for row in report.file.image_rows[4:8]] == ["5.png"] * 4
    assert set(train(path)) == {1, 2, 3, 4}
    path = spoiled(tmp_path, lambda content: content["images"][4].update(file_name="2.png"))
    assert finding(check(path), ip.REPEATED_FILE.key).examples == ["image 5 (2.png)"]
    assert [len(instances) for instances in train(path).values()] == [PER_IMAGE] * IMAGES


def test_the_first_of_several_pages_and_the_upper_of_16_bits(tmp_path: Path) -> None:
    path = spoiled(tmp_path, lambda content: content["images"][1].update(file_name="deep.png"))
    Image.fromarray(np.full((HEIGHT, WIDTH), 3000, np.uint16)).save(tmp_path / "deep.png")
    assert "takes the upper 8 of 16 bits" in finding(check(path), ip.DEEP.key).effect
    assert (read_image(str(tmp_path / "deep.png"), "BGR") == 3000 // 256).all()
    path = spoiled(tmp_path, lambda content: content["images"][1].update(file_name="pages.tif"))
    pages = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    report = check(path, decode=True)
    assert finding(report, ip.PAGES.key).examples == ["image 2 (pages.tif)"] and report.severity == FINE
    assert (read_image(str(tmp_path / "pages.tif"), "RGB") == [255, 0, 0]).all()


def test_categories_that_are_wrong(tmp_path: Path) -> None:
    path = spoiled(tmp_path, lambda content: content["categories"][1].update(name=5))
    found = finding(check(path), ip.CATEGORY_KEYS.key)
    assert found.severity == STOPS and "name that is a string" in found.fix
    with pytest.raises(ValueError) as error:  # before training
        read_category_names(path)
    assert str(error.value) == f"{path}: {found.examples[0]}"

    def spoil(content: Content) -> None:
        content["categories"].append({"id": 9, "name": "none"})
        for annotation in content["annotations"][4:]:
            annotation["category_id"] = 7

    report = check(spoiled(tmp_path, spoil))
    assert finding(report, ip.NO_INSTANCES.key).examples == ["none"] and report.severity == 1
    few = finding(report, ip.FEW_INSTANCES.key)
    assert few.examples == ["box (2)"] and few.severity == FINE


def test_ids_are_found_as_a_dict_finds_them(tmp_path: Path) -> None:
    values, wanted = [5, "a", 2**70, 5, 1.0, "a", 2.5, None, [3], True], [5, "a", 2**70, 1, 2.5, None, 7, "b", 0]
    content = good_content()
    content["images"] = [{**content["images"][0], "id": id_} for id_ in values]
    content["annotations"] = [{**content["annotations"][0], "id": n, "image_id": id_} for n, id_ in enumerate(wanted)]
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(content))
    as_dict = {value: row for row, value in enumerate(values) if not isinstance(value, list) and value is not None}
    file = scan(path)
    assert file.image_rows.tolist() == [as_dict.get(id_, -1) for id_ in wanted]
    repeated = (file.image_flags & ip.REPEATED_IMAGE_ID.bit) != 0
    assert repeated.tolist() == [True, True, False, False, True, False, False, False, False, False]


def test_images_without_objects_are_counted(tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        drop_annotations_of(content, 2)
        for annotation in content["annotations"]:
            annotation["iscrowd"] = int(annotation["image_id"] == 3)
            annotation["segmentation"] = annotation["segmentation"] if annotation["image_id"] > 1 else []

    path = spoiled(tmp_path, spoil)
    report = check(path)
    assert finding(report, ip.EMPTIED.key).examples == ["image 1 (1.png)"] and report.severity == 1
    assert finding(report, ip.NO_ANNOTATIONS.key).examples == ["image 2 (2.png)"]
    assert finding(report, ip.ONLY_CROWD.key).examples == ["image 3 (3.png)"]
    assert "leaves them out" in finding(report, ip.ONLY_CROWD.key).effect
    assert {image: len(instances) for image, instances in train(path).items()} == {1: 0, 4: 4, 5: 4}


@pytest.mark.parametrize(
    ("spoil", "problem", "error"),
    [
        (lambda content: content["images"].append(3), ip.IMAGE_NO_OBJECT, TypeError),
        (lambda content: content["images"][0].pop("id"), ip.IMAGE_KEYS, KeyError),
        (lambda content: content["images"][0].pop("file_name"), ip.IMAGE_KEYS, KeyError),
        (lambda content: content["images"][0].pop("width"), ip.IMAGE_KEYS, KeyError),
        (lambda content: content["images"][0].update(width="64"), ip.IMAGE_SIDES, (SizeMismatchError, TypeError)),
        (lambda content: content["images"][0].update(height=0), ip.IMAGE_SIDES, SizeMismatchError),
        (lambda content: content["images"][0].update(id="one"), ip.MIXED_IDS, TypeError),
        (lambda content: content.update(images=[]), ip.NO_IMAGES, AssertionError),
        (lambda content: content.pop("images"), ip.NO_IMAGES, AssertionError),
        (lambda content: content.update(annotations=[]), ip.NOTHING_TO_LEARN, AssertionError),
        (lambda content: content.pop("annotations"), ip.NOTHING_TO_LEARN, AssertionError),
        (lambda content: content.pop("categories"), ip.NO_CATEGORIES, KeyError),
        (lambda content: content.update(categories=[]), ip.NO_CATEGORIES, ValueError),
        (lambda content: content["categories"][0].pop("name"), ip.CATEGORY_KEYS, KeyError),
        (lambda content: content["categories"][0].pop("id"), ip.CATEGORY_KEYS, KeyError),
        (lambda content: content["categories"][0].update(id="7"), ip.MIXED_IDS, TypeError),
    ],
)
def test_what_stops_training(
    tmp_path: Path, spoil: Callable[[Content], object], problem: Rule, error: type[Exception]
) -> None:
    path = spoiled(tmp_path, spoil)
    report = check(path)
    assert finding(report, problem.key).severity == STOPS and report.severity == 2
    with pytest.raises(error):
        train(path)


def test_a_category_name_and_an_id_twice(tmp_path: Path) -> None:
    twice = spoiled(tmp_path, lambda content: content["categories"][0].update(name="box"))
    assert finding(check(twice), ip.REPEATED_NAME.key).examples == ["box"]
    path = spoiled(tmp_path, lambda content: content["categories"].append({"id": 3, "name": "bag"}))
    report = check(path)
    assert finding(report, ip.REPEATED_CATEGORY_ID.key).examples == ["3 (bag)"]
    assert report.file.classes == ["box", "bag", "cross"]
    assert finding(report, ip.NO_INSTANCES.key).examples == ["box"]
    assert {int(k) for instances in train(path).values() for k in instances.gt_classes} == {1, 2}
    with pytest.raises(AssertionError):  # as the report says
        ap_of_the_truth(path)


def test_a_file_that_is_no_dataset(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"info": 1}')
    with pytest.raises(ValueError, match="neither images nor annotations"):
        scan(tmp_path / "train.json")


def test_the_order_of_sections_does_not_matter(good: Path, tmp_path: Path) -> None:
    content = json.loads(good.read_text())
    other = tmp_path / "turned"
    other.mkdir()
    for image in tmp_path.glob("*.png"):
        shutil.copy(image, other)
    path = other / "train.json"
    path.write_text(json.dumps(dict(reversed(content.items()))))
    ours, theirs = check(good), check(path)
    assert ours.findings == theirs.findings and (ours.file.flags == theirs.file.flags).all()


def test_the_number_of_workers_does_not_matter(tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        annotations = content["annotations"]
        more = [{**a, "id": a["id"] + 100 * n} for n in range(1, 150) for a in annotations]
        for annotation in more[::7]:
            annotation["segmentation"] = []
        annotations += more

    path = spoiled(tmp_path, spoil)
    assert check(path, workers=1).findings == check(path, workers=2).findings
