"""Annotation files in COCO's format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meinst_d2.data.datasets import DatasetError, register_coco
from meinst_d2.data.mapper import MEInstDatasetMapper
from meinst_d2.engine import Trainer
from meinst_d2.masks.rle import BAD_RLE, FEW_POINTS, MALFORMED, NO_BOX, NO_IMAGE, NO_MASK, OUTSIDE
from tests.bad_input.case import Call, Case, check_dataset_with, coco_content, fit_pca_with, train_with
from tests.models import tiny_cfg

Change = Callable[[dict[str, Any]], object]
FIT = "meinst fit --coco-json"
NONE_LEFT = (
    "\nmeinst fit: 0 of 8 annotations have a usable mask, 2 components need at least 3: give more annotations or a "
    "smaller --dim"
)
HINT = ": meinst check a.json says what is wrong"


def written(folder: Path, content: object) -> Path:
    """The file; texts and bytes as they are, others as JSON."""
    path = folder / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else _text(content).encode())
    return path


def _text(content: object) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def changed(change: Change) -> dict[str, Any]:
    content = coco_content()
    change(content)
    return content


def all_annotations(**values: Any) -> dict[str, Any]:
    """Every annotation with other values."""
    return changed(lambda content: [annotation.update(values) for annotation in content["annotations"]])


def without(section: str) -> dict[str, Any]:
    return changed(lambda content: content.pop(section))


def image(**values: Any) -> dict[str, Any]:
    return changed(lambda content: content["images"][0].update(values))


def rle(counts: Any, height: int = 40, width: int = 60) -> dict[str, Any]:
    return all_annotations(segmentation={"size": [height, width], "counts": counts})


def cut_off() -> str:
    return json.dumps(coco_content())[:200]


def fit(wrong: str, content: object, gets: str) -> Case:
    return Case(FIT, wrong, gets, lambda folder: fit_pca_with(written(folder, content)))


def skipped(wrong: str, content: object, reason: str) -> Case:
    return fit(wrong, content, f"skipped 8: {reason}{NONE_LEFT}")


def load(wrong: str, content: object, gets: str) -> Case:
    """Training's way into the file, which is Detectron2's."""

    def make(folder: Path) -> Call:
        name = register_coco(f"bad_input={written(folder, content)}:{folder}")
        cfg = tiny_cfg("DATASETS.TRAIN", (name,))
        return lambda: Trainer.build_train_loader(cfg)

    return Case(
        "meinst train, loading", wrong, f"the dataset bad_input cannot be loaded ({gets}){HINT}", make, DatasetError
    )


def before(wrong: str, content: object, gets: str) -> Case:
    """The checks of meinst train, which look at the categories."""

    def make(folder: Path) -> Call:
        dataset = f"bad_input={written(folder, content)}:{folder}"
        names = ("DATASETS.TRAIN", "('bad_input',)", "MODEL.MEINST.NUM_CLASSES", 6)
        return train_with(folder, *names, flags=("--coco-dataset", dataset))

    return Case("meinst train", wrong, f"meinst train: {gets}", make)


def boxless(folder: Path) -> Call:
    from PIL import Image

    Image.new("RGB", (60, 40)).save(folder / "a.png")
    record = {"file_name": str(folder / "a.png"), "image_id": 1, "height": 40, "width": 60}
    record["annotations"] = [{"category_id": 0, "segmentation": [], "bbox_mode": 1}]
    mapper = MEInstDatasetMapper(augmentations=[], image_format="BGR", mask_size=None)
    return lambda: mapper(record)


def missing() -> Case:
    sentence = "meinst fit: there is no annotation file a.json"
    return Case(FIT, "the file is not there", sentence, lambda folder: fit_pca_with(folder / "a.json"))


def check(wrong: str, content: object, gets: str) -> Case:
    return Case("meinst check", wrong, gets, lambda folder: check_dataset_with(written(folder, content)))


NOT_COCO = ": it is not in COCO's instances format"
NOT_JSON = "meinst fit: a.json is not readable JSON: "

CASES = [
    missing(),
    fit("cut off", cut_off(), NOT_JSON + "it is cut off (after 200 bytes)"),
    fit("empty", "", "meinst fit: a.json is empty" + NOT_COCO),
    fit(
        "a list instead of an object",
        [1],
        "meinst fit: a.json is not in COCO's instances format: it is not a JSON object (Expected `object`, got "
        "`array`)",
    ),
    fit("not UTF-8", b"\xff\xfe{}", NOT_JSON + "invalid character (byte 0)"),
    fit("a comma too many", '{"images": [1,]}', NOT_JSON + "trailing comma in array (byte 14)"),
    fit("lists in lists without end", '{"images": ' + "[" * 100_000, NOT_JSON + "it is nested too deeply"),
    fit("no images", without("images"), "meinst fit: a.json is not in COCO's instances format: it has no 'images'"),
    fit(
        "no annotations",
        without("annotations"),
        "meinst fit: a.json is not in COCO's instances format: it has no 'annotations'",
    ),
    fit(
        "an object where a list belongs",
        changed(lambda content: content.update(annotations={"id": 1})),
        f"meinst fit: a.json: 'annotations' is an object instead of a list{NOT_COCO}",
    ),
    fit(
        "categories that are a number",
        changed(lambda content: content.update(categories=5)),
        f"meinst fit: a.json: 'categories' is a number instead of a list{NOT_COCO}",
    ),
    fit(
        "a number among the annotations",
        changed(lambda content: content["annotations"].append(5)),
        "meinst fit: a.json: annotation number 8 is a number instead of an object",
    ),
    fit(
        "a category without an id",
        changed(lambda content: content.update(categories=[{"name": "thing"}])),
        "meinst fit: a.json: category number 0 needs an id that is a number or a string, it has None",
    ),
    fit(
        "category ids that are objects",
        changed(lambda content: content.update(categories=[{"id": {}}, {"id": {}}])),
        "meinst fit: a.json: category number 0 needs an id that is a number or a string, it has {}",
    ),
    fit(
        "an image without a height",
        image(height=None),
        "meinst fit: a.json: image number 0 needs an id, a height and a width in whole pixels, it has id 1, height "
        "None, width 60",
    ),
    fit(
        "an image of negative height",
        image(height=-40),
        "meinst fit: a.json: image number 0 needs an id, a height and a width in whole pixels, it has id 1, height "
        "-40, width 60",
    ),
    fit(
        "an image higher than any number of 32 bits",
        image(height=10**12),
        "meinst fit: a.json: image number 0 needs an id, a height and a width in whole pixels, it has id 1, height "
        "1000000000000, width 60",
    ),
    fit(
        "category ids of two types",
        changed(lambda content: content.update(categories=[{"id": 1}, {"id": "2"}])),
        "meinst fit: a.json: the category ids are of types that cannot be sorted ('<' not supported between instances "
        "of 'str' and 'int'): use numbers, or strings, for all",
    ),
    skipped("image ids that are strings here and numbers there", all_annotations(image_id="1"), NO_IMAGE),
    skipped("annotations of images that are not listed", all_annotations(image_id=7), NO_IMAGE),
    skipped("annotations without a segmentation", all_annotations(segmentation=None), NO_MASK),
    skipped("polygons that are not lists in a list", all_annotations(segmentation=[1, 1, 20, 1, 20, 20]), MALFORMED),
    skipped("points in pairs", all_annotations(segmentation=[[1, 1], [20, 1], [20, 20]]), MALFORMED),
    skipped("boxes outside their image", all_annotations(bbox=[70, 1, 20, 20]), OUTSIDE),
    skipped("an odd number of coordinates", all_annotations(segmentation=[[1, 1, 20, 1, 20, 20, 5]]), FEW_POINTS),
    skipped("NaN among the coordinates", all_annotations(segmentation=[[1, 1, math.nan, 1, 20, 20]]), MALFORMED),
    skipped("boxes that are strings", all_annotations(bbox="1 1 30 30"), NO_BOX),
    skipped("RLE: counts beyond 32 bits", rle([2**33, 10]), BAD_RLE),
    skipped("RLE: counts beyond 64 bits, whose sum wraps around to the right one", rle([2**64, 2400]), BAD_RLE),
    skipped("RLE: negative counts", rle([-10, 2410]), BAD_RLE),
    skipped("RLE: counts that do not add up", rle([10, 10]), BAD_RLE),
    skipped("RLE: of another size than the image", rle([10, 14], 4, 6), BAD_RLE),
    skipped("RLE: of a million million pixels", rle([0, 10**12], 10**6, 10**6), BAD_RLE),
    skipped("RLE: compressed counts that are not ASCII", rle("\u00e9\u2603"), BAD_RLE),
    skipped("RLE: compressed counts that end within a number", rle("PR1o"), BAD_RLE),
    load(
        "cut off",
        cut_off(),
        "JSONDecodeError Expecting property name enclosed in double quotes: line 1 column 201 (char 200)",
    ),
    load("no categories", without("categories"), "KeyError 'categories'"),
    load(
        "an annotation id twice",
        all_annotations(id=1),
        "AssertionError Annotation ids in 'a.json' are not unique!",
    ),
    load(
        "annotations of a category that is not listed",
        all_annotations(category_id=7),
        "KeyError \"Encountered category_id=7 but this id does not exist in 'categories' of the json file.\"",
    ),
    load(
        "an annotation without image_id",
        changed(lambda content: content["annotations"][0].pop("image_id")),
        "KeyError 'image_id'",
    ),
    Case(
        "meinst train, at the image",
        "an annotation without a box",
        "the annotations of a.png cannot be used (KeyError 'bbox'): meinst check says what is wrong with them",
        boxless,
        ValueError,
    ),
    before(
        "a category without a name",
        changed(lambda content: content["categories"][0].update(name=None)),
        "a.json: category number 0 needs a name that is a string, it has None",
    ),
    before("empty", "", "a.json is empty: it is not in COCO's instances format"),
    before(
        "no categories",
        without("categories"),
        "a.json is not in COCO's instances format: it has no 'categories'",
    ),
    before(
        "one class where the config has six",
        coco_content(),
        "the dataset 'bad_input' has 1 classes, MODEL.MEINST.NUM_CLASSES is 6: set MODEL.MEINST.NUM_CLASSES 1",
    ),
    check("cut off", cut_off(), "meinst check: a.json is not readable JSON: it is cut off (after 200 bytes)"),
    Case(
        "meinst check",
        "the file is not there",
        "meinst check: there is no annotation file a.json",
        lambda folder: check_dataset_with(folder / "a.json"),
    ),
]
