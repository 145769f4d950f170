"""One spoiled dataset per problem of annotations: what is said of it, and what training really does."""

import json
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meinst_d2.check import HURTS, STOPS, Rule
from meinst_d2.check import annotation_rules as p
from meinst_d2.data.coco import read_coco_json
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
def test_what_stops_training(tmp_path: Path, what: str) -> None:
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
