"""One spoiled dataset per problem of annotations, images or categories: what is said, and what training does."""

import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from meinst_d2.check import FINE, HURTS, STOPS, Rule
from meinst_d2.check import annotation_rules as p
from meinst_d2.check import image_rules as ip
from meinst_d2.check.coco_file import scan
from meinst_d2.data.coco import read_category_names, read_coco_json
from meinst_d2.data.image_files import read_image
from meinst_d2.data.instances import make_templates
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

FIRST = 11  # the first annotation of image 1 but one
NUM = IMAGES * PER_IMAGE


def change(**values: Any) -> Callable[[Content], None]:
    """Give one annotation other values; None removes the key."""

    def spoil(content: Content) -> None:
        annotation = content["annotations"][1]
        assert annotation["id"] == FIRST
        for key, value in values.items():
            annotation[key] = value
            if value is None:
                del annotation[key]

    return spoil


def rle(height: int, width: int, total: int | None = None) -> dict[str, Any]:
    """A square of 14 in a mask, as runs."""
    mask = np.zeros((height, width), np.uint8)
    mask[4:18, 40:54] = 1
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, total or flat.size]).tolist()
    return {"size": [height, width], "counts": runs}


STOPPED = {
    "an element that is no object": (lambda content: content["annotations"].append(7), p.NO_OBJECT, TypeError),
    "no id": (change(id=None), p.NO_KEYS, KeyError),
    "no image": (change(image_id=None), p.NO_KEYS, KeyError),
    "no category": (change(category_id=None), p.NO_KEYS, KeyError),
    "an id that is a list": (change(id=[1]), p.NO_KEYS, TypeError),
    "an id twice": (change(id=12), p.REPEATED_ID, AssertionError),
    "an unknown category": (change(category_id=5), p.UNKNOWN_CATEGORY, KeyError),
    "to be ignored": (change(ignore=1), p.IGNORED, AssertionError),
    "no box": (change(bbox=None), p.BAD_BOX, ValueError),
    "an empty box": (change(bbox=[]), p.BAD_BOX, ValueError),
    "an empty box of a crowd": (change(bbox=[], iscrowd=1), p.BAD_BOX, ValueError),
    "a text in a box": (change(bbox=[40.0, 4.0, "wide", 14.0]), p.BAD_BOX, ValueError),
    "a number beyond floats": (change(bbox=[40.0, 4.0, 10**400, 14.0]), p.BAD_BOX, ValueError),
    "three numbers": (change(bbox=[4.0, 4.0, 9.0]), p.BAD_BOX, ValueError),
    "a flat polygon": (change(segmentation=[4.0, 4.0, 18.0, 4.0, 4.0, 18.0]), p.BAD_SEGMENTATION, TypeError),
    "a number": (change(segmentation=3), p.BAD_SEGMENTATION, TypeError),
    "an RLE without counts": (change(segmentation={"size": [48, 64]}), p.BAD_SEGMENTATION, KeyError),
    "runs without a size": (change(segmentation={"counts": [1, 2]}), p.BAD_SEGMENTATION, KeyError),
    "negative runs": (
        change(segmentation={"size": [HEIGHT, WIDTH], "counts": [-1, HEIGHT * WIDTH + 1]}),
        p.BAD_SEGMENTATION,
        (ValueError, OverflowError),
    ),
}


@pytest.mark.parametrize("what", STOPPED)
def test_annotations_that_stop_training(tmp_path: Path, what: str) -> None:
    spoil, problem, error = STOPPED[what]
    path = spoiled(tmp_path, spoil)
    report = check(path)
    found = finding(report, problem.key)
    assert found.count == 1 and found.severity == STOPS and report.severity == 2
    assert len(found.examples) == 1 and "stops" in found.effect
    with pytest.raises(error):
        train(path)


LEFT_OUT = {
    "of an unknown image": (change(image_id="1"), p.UNKNOWN_IMAGE),
    "no segmentation": (change(segmentation=None), p.NO_MASK),
    "an empty segmentation": (change(segmentation=[]), p.NO_MASK),
    "two points": (change(segmentation=[[40.0, 4.0, 54.0, 18.0]]), p.FEW_POINTS),
    "an odd number of coordinates": (change(segmentation=[[40.0, 4, 54, 18, 40, 18, 3]]), p.FEW_POINTS),
    "a string": (change(segmentation="polygon"), p.OTHER_FORM),
    "texts in a polygon": (change(segmentation=[["a", 4, 54, 18, 40, 18]]), p.BAD_POLYGON),
    "no numbers in a polygon": (change(segmentation=[[float("nan"), 4, 54, 18, 40, 18]]), p.BAD_POLYGON),
    "an RLE of the size turned round": (change(segmentation=rle(WIDTH, HEIGHT)), p.BAD_RLE),
    "runs that are too few": (change(segmentation=rle(HEIGHT, WIDTH, 2700)), p.BAD_RLE),
    "counts that are no runs": (change(segmentation={"size": [HEIGHT, WIDTH], "counts": "~~~"}), p.BAD_RLE),
    "a box with NaN": (change(bbox=[float("nan"), 4, 14, 14]), p.NOT_FINITE),
    "a box without width": (change(bbox=[40.0, 4, 0, 14]), p.NO_AREA),
    "a box outside": (change(bbox=[70.0, 4, 14, 14]), p.OUTSIDE),
    "a box above": (change(bbox=[40.0, -20, 14, 14]), p.OUTSIDE),
    "a crowd": (change(iscrowd=1), p.CROWD),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_training_leaves_out(tmp_path: Path, what: str) -> None:
    spoil, problem = LEFT_OUT[what]
    path = spoiled(tmp_path, spoil)
    report = check(path)
    found = finding(report, problem.key)
    expected = 0 if problem is p.CROWD else 1
    assert found.count == 1 and report.severity == found.severity == expected
    assert str(FIRST) in found.examples[0]
    assert report.file.learned.sum() == NUM - 1
    assert len(train(path)[1]) == PER_IMAGE - 1


def test_annotations_that_are_well(tmp_path: Path) -> None:
    path = write(tmp_path, good_content())
    report = check(path)
    few = [finding for finding in report.findings if finding.severity > 0]
    assert not few and report.severity == 0 and report.file.classes == ["box", "cross"]
    assert [len(instances) for instances in train(path).values()] == [PER_IMAGE] * IMAGES
    path = spoiled(tmp_path, change(segmentation=rle(HEIGHT, WIDTH)))
    assert check(path).severity == 0
    assert train(path)[1].gt_mask_templates[1].all()
    outline = [[50.0, 4.0, 64.9, 4.0, 64.9, 18.0, 50.0, 18.0]]
    path = spoiled(tmp_path, change(bbox=[50.0, 4.0, 14.9, 14.0], segmentation=outline))
    assert check(path).severity == 0
    path = spoiled(tmp_path, change(area=10**400))
    assert check(path).severity == 0 and len(train(path)[1]) == PER_IMAGE
    path = spoiled(tmp_path, change(image_id=99, id=12, category_id=5, ignore=1, bbox=[], segmentation=3))
    report = check(path)
    assert [f.rule for f in report.findings if f.severity > 0] == [p.UNKNOWN_IMAGE]
    assert len(train(path)[1]) == PER_IMAGE - 1


def test_parts_of_masks_that_are_missing(tmp_path: Path) -> None:
    whole = good_content()["annotations"][1]["segmentation"][0]
    path = spoiled(tmp_path, change(segmentation=[[40.0, 4.0, 50.0, 9.0], whole]))
    assert finding(check(path), p.SOME_FEW_POINTS.key).severity == HURTS
    assert len(train(path)[1]) == PER_IMAGE
    path = spoiled(tmp_path, change(segmentation={"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}))
    assert finding(check(path), p.EMPTY.key).count == 1
    assert not train(path)[1].gt_mask_templates[1].any()


OUTLINE_AT_THE_EDGE = [[50.0, 4.0, 78.0, 4.0, 78.0, 18.0, 50.0, 18.0]]
LEARNED_OTHERWISE = [  # box, rule, what the report says, what training learns
    ([40.0, 20.0, -14.0, -14.0], p.NEGATIVE, "turns them round", [26, 6, 40, 20]),
    ([40.0, "4", 14.0, "1.4e1"], p.NO_NUMBERS, "the numbers that they can be read as", [40, 4, 54, 18]),
    ([True, True, 14.0, 14.0], p.NO_NUMBERS, "the numbers that they can be read as", [1, 1, 15, 15]),
    ([40.0, 4.0, None, 14.0], p.NO_NUMBERS, "drops boxes with null", None),
    ([40.0, 4.0, float("inf"), 14.0], p.NOT_FINITE, "clips infinite sides", [40, 4, WIDTH, 18]),
    ([50.0, 4.0, 28.0, 14.0], p.CROSSES, "clips", [50, 4, WIDTH, 18]),
    ([26.0, 4.0, 28.0, 14.0], p.MISMATCH, "learns the box as it is", [26, 4, 54, 18]),
    ([4.0, 4.0, 10.0, 10.0], p.EMPTY, "learns an empty mask", [4, 4, 14, 14]),
]


@pytest.mark.parametrize(("box", "rule", "effect", "learned"), LEARNED_OTHERWISE)
def test_boxes_that_are_learned_otherwise(
    tmp_path: Path, box: list[Any], rule: Rule, effect: str, learned: list[float] | None
) -> None:
    at_the_edge = {"segmentation": OUTLINE_AT_THE_EDGE} if rule is p.CROSSES else {}
    path = spoiled(tmp_path, change(bbox=box, **at_the_edge))
    found = finding(check(path), rule.key)
    assert found.count == 1 and found.severity == HURTS and effect in found.effect
    instances = train(path)[1]
    assert len(instances) == (PER_IMAGE if learned else PER_IMAGE - 1)
    if learned:
        assert instances.gt_boxes.tensor[1].tolist() == learned
        template = instances.gt_mask_templates[1]
        if rule is p.MISMATCH:  # the mask fills its right half
            assert not template[:, :14].any() and template[:, 14:].all()
        elif rule in (p.CROSSES, p.EMPTY):
            assert template.all() if rule is p.CROSSES else not template.any()


def test_the_likely_mistake_is_named(tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        for annotation in content["annotations"]:
            x, y, width, height = annotation["bbox"]
            annotation["bbox"] = [x, y, x + width, y + height]

    assert "[x0, y0, x1, y1]" in finding(check(spoiled(tmp_path, spoil)), p.MISMATCH.key).note
    path = spoiled(tmp_path, change(segmentation=rle(WIDTH, HEIGHT)))
    assert "[width, height]" in finding(check(path), p.BAD_RLE.key).note
    found = finding(check(spoiled(tmp_path, change(segmentation=OUTLINE))), p.BAD_SEGMENTATION.key)
    assert "flat lists, in which a number stands where a polygon belongs" in found.note


CORNERS = [[40.0, 4.0], [54.0, 4.0], [54.0, 18.0], [40.0, 18.0]]
OUTLINE = [*chain(*CORNERS)]
FORMS = {
    "[[x, y], ...]": CORNERS,
    "[[[x, y], ...]]": [CORNERS],
    "points in pairs, [[[x, y], ...]]": [CORNERS + CORNERS],
    "RLEs in a list": [rle(HEIGHT, WIDTH)],
    "lists of objects": [{"x": x, "y": y} for x, y in CORNERS],
    "not a list but a string": json.dumps([OUTLINE]),
}


@pytest.mark.parametrize("form", FORMS)
def test_segmentations_of_another_form_are_named(tmp_path: Path, form: str) -> None:
    path = spoiled(tmp_path, change(segmentation=FORMS[form]))
    found = finding(check(path), p.OTHER_FORM.key)
    assert found.count == 1 and form in found.note and found.fix.startswith("polygons are [[x0, y0, x1, y1, ...]]")
    assert len(train(path)[1]) == PER_IMAGE - 1
    skipped = make_templates(read_coco_json(path), 8).skipped  # meinst fit
    assert len(skipped) == 1 and sum(skipped.values()) == 1


@pytest.mark.parametrize("masks", [False, True])
def test_coordinates_between_0_and_1(tmp_path: Path, masks: bool) -> None:
    def spoil(content: Content) -> None:
        for annotation in content["annotations"]:
            annotation["bbox"] = [v / s for v, s in zip(annotation["bbox"], [WIDTH, HEIGHT] * 2, strict=True)]
            outline = zip(annotation["segmentation"][0], [WIDTH, HEIGHT] * 4, strict=True)
            annotation["segmentation"] = [[v / s for v, s in outline]] if masks else annotation["segmentation"]

    report = check(spoiled(tmp_path, spoil))
    (found,) = [found for found in report.findings if found.severity > 0 and found.rule is not p.EMPTY]
    assert found.rule is p.RELATIVE and found.count == NUM
    assert "between 0 and 1" in found.rule.title and "coordinates are in pixels" in found.fix


@pytest.mark.parametrize(("area", "named"), [(100.0, True), (196.0, False), (225.0, False), (None, False)])
def test_a_polygon_inside_another_is_filled(tmp_path: Path, area: float | None, named: bool) -> None:
    hole = [43.0, 7.0, 51.0, 7.0, 51.0, 15.0, 43.0, 15.0]
    path = spoiled(tmp_path, change(segmentation=[OUTLINE, hole], area=area))
    report = check(path)
    assert bool(report.file.having(p.HOLE).any()) == named
    if named:
        note = "the file gives 100 pixels as their area, filled they have 196"
        assert finding(report, p.HOLE.key).note == note and report.severity == HURTS
    assert train(path)[1].gt_mask_templates[1].all()


@pytest.mark.parametrize("rule", [p.UNKNOWN_IMAGE, p.UNKNOWN_CATEGORY])
def test_ids_that_differ_in_their_type_alone(tmp_path: Path, rule: Rule) -> None:
    path = spoiled(tmp_path, change(**{"image_id" if rule is p.UNKNOWN_IMAGE else "category_id": "7"}))
    assert ("type" in finding(check(path), rule.key).note) == (rule is p.UNKNOWN_CATEGORY)
    path = spoiled(tmp_path, change(**{"image_id" if rule is p.UNKNOWN_IMAGE else "category_id": "3"}))
    found = finding(check(path), rule.key)
    assert found.note == "most differ from an id in their type alone, such as '3' from 3"
    assert found.fix == "write both as numbers, or both as strings"


def renamed(content: Content, section: str, key: str, name: Callable[[Any], Any]) -> None:
    for element in content[section]:
        element["id"] = name(element["id"])
    for annotation in content["annotations"] if key else ():
        annotation[key] = name(annotation[key])


GOOD_IDS: dict[str, Callable[[Content], None]] = {
    "images by string": lambda content: renamed(content, "images", "image_id", "img_{}".format),
    "images by zero-padded string": lambda content: renamed(content, "images", "image_id", "{:06}".format),
    "images by fraction": lambda content: renamed(content, "images", "image_id", lambda id_: id_ + 0.5),
    "images by float": lambda content: renamed(content, "images", "image_id", float),
    "categories by string": lambda content: renamed(content, "categories", "category_id", str),
    "annotations by string": lambda content: renamed(content, "annotations", "", "a{}".format),
    "annotations from zero": lambda content: renamed(content, "annotations", "", lambda id_: id_ - 10),
    "annotations below zero": lambda content: renamed(content, "annotations", "", lambda id_: -id_),
    "no crowd flag": lambda content: (
        [annotation.update(iscrowd=None) for annotation in content["annotations"]] and None
    ),
}


@pytest.mark.parametrize("what", GOOD_IDS)
def test_ids_of_any_type_are_well(tmp_path: Path, what: str) -> None:
    path = spoiled(tmp_path, GOOD_IDS[what])
    report = check(path)
    assert report.severity == 0 and report.file.learned.all() and report.file.classes == ["box", "cross"]
    trained = train(path)
    assert [len(instances) for instances in trained.values()] == [PER_IMAGE] * IMAGES
    assert list(trained) == sorted(report.file.image_ids)
    assert trained[report.file.image_ids[0]].gt_classes.tolist() == [0, 1, 0, 1]
    assert ap_of_the_truth(path) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


@pytest.mark.parametrize("key", ["area", "iscrowd"])
def test_evaluation_works_without_area_and_iscrowd(tmp_path: Path, key: str) -> None:
    def spoil(content: Content) -> None:
        for annotation in content["annotations"]:
            del annotation[key]

    path = spoiled(tmp_path, spoil)
    report = check(path)
    found = finding(report, p.EVALUATION_KEYS.key)
    assert report.severity == found.severity == 0 and found.count == NUM
    assert "evaluation takes the area from the mask and iscrowd for 0" in found.effect
    assert len(train(path)[1]) == PER_IMAGE
    assert ap_of_the_truth(path) == {"bbox": pytest.approx(100), "segm": pytest.approx(100)}


def test_counts_and_the_first_examples(tmp_path: Path) -> None:
    def spoil(content: Content) -> None:
        for annotation in content["annotations"][3:12]:
            annotation["segmentation"] = []

    found = finding(check(spoiled(tmp_path, spoil), num_examples=2), p.NO_MASK.key)
    assert found.count == 9 and found.examples == ["annotation 13 of 1.png", "annotation 20 of 2.png"]
    content = json.loads(json.dumps(good_content()))
    content["annotations"][0]["id"] = 2**70
    content["annotations"][1]["id"] = 2**70
    assert finding(check(write(tmp_path, content)), p.REPEATED_ID.key).count == 1


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
    with pytest.raises(NotADirectoryError, match="the folder of images .* does not exist"):
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
