"""Annotation files in COCO's format."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meinst_d2.data.datasets import DatasetError, register_coco
from meinst_d2.data.mapper import MEInstDatasetMapper
from meinst_d2.engine import Trainer
from tests.bad_input.case import Call, Case, check_dataset_with, coco_content, fit_pca_with, train_with
from tests.models import tiny_cfg

Change = Callable[[dict[str, Any]], object]
FIT = "meinst fit --coco-json"


def written(folder: Path, content: object) -> Path:
    """The file; texts and bytes as they are, others as JSON."""
    path = folder / "a.json"
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


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


def fit(wrong: str, content: object) -> Case:
    return Case(FIT, wrong, lambda folder: fit_pca_with(written(folder, content)))


def load(wrong: str, content: object) -> Case:
    """Training's way into the file, which is Detectron2's."""

    def make(folder: Path) -> Call:
        name = register_coco(f"bad_input={written(folder, content)}:{folder}")
        cfg = tiny_cfg("DATASETS.TRAIN", (name,))
        return lambda: Trainer.build_train_loader(cfg)

    return Case("meinst train, loading", wrong, make, DatasetError)


def before(wrong: str, content: object) -> Case:
    """The checks of meinst train, which look at the categories."""

    def make(folder: Path) -> Call:
        dataset = f"bad_input={written(folder, content)}:{folder}"
        names = ("DATASETS.TRAIN", "('bad_input',)", "MODEL.MEINST.NUM_CLASSES", 6)
        return train_with(folder, *names, flags=("--coco-dataset", dataset))

    return Case("meinst train", wrong, make)


def boxless(folder: Path) -> Call:
    from PIL import Image

    Image.new("RGB", (60, 40)).save(folder / "a.png")
    record = {"file_name": str(folder / "a.png"), "image_id": 1, "height": 40, "width": 60}
    record["annotations"] = [{"category_id": 0, "segmentation": [], "bbox_mode": 1}]
    mapper = MEInstDatasetMapper(augmentations=[], image_format="BGR", mask_size=None)
    return lambda: mapper(record)


def check(wrong: str, content: object) -> Case:
    return Case("meinst check", wrong, lambda folder: check_dataset_with(written(folder, content)))


CASES = [
    Case(FIT, "the file is not there", lambda folder: fit_pca_with(folder / "a.json")),
    fit("cut off", cut_off()),
    fit("empty", ""),
    fit("a list instead of an object", [1]),
    fit("not UTF-8", b"\xff\xfe{}"),
    fit("a comma too many", '{"images": [1,]}'),
    fit("lists in lists without end", '{"images": ' + "[" * 100000),
    fit("no images", without("images")),
    fit("no annotations", without("annotations")),
    fit("an object where a list belongs", changed(lambda content: content.update(annotations={"id": 1}))),
    fit("categories that are a number", changed(lambda content: content.update(categories=5))),
    fit("a number among the annotations", changed(lambda content: content["annotations"].append(5))),
    fit("a category without an id", changed(lambda content: content.update(categories=[{"name": "thing"}]))),
    fit("category ids that are objects", changed(lambda content: content.update(categories=[{"id": {}}, {"id": {}}]))),
    fit("an image without a height", image(height=None)),
    fit("an image of negative height", image(height=-40)),
    fit("an image higher than any number of 32 bits", image(height=10**12)),
    fit("category ids of two types", changed(lambda content: content.update(categories=[{"id": 1}, {"id": "2"}]))),
    fit("image ids that are strings here and numbers there", all_annotations(image_id="1")),
    fit("annotations of images that are not listed", all_annotations(image_id=7)),
    fit("annotations without a segmentation", all_annotations(segmentation=None)),
    fit("polygons that are not lists in a list", all_annotations(segmentation=[1, 1, 20, 1, 20, 20])),
    fit("points in pairs", all_annotations(segmentation=[[1, 1], [20, 1], [20, 20]])),
    fit("boxes outside their image", all_annotations(bbox=[70, 1, 20, 20])),
    fit("an odd number of coordinates", all_annotations(segmentation=[[1, 1, 20, 1, 20, 20, 5]])),
    fit("NaN among the coordinates", all_annotations(segmentation=[[1, 1, math.nan, 1, 20, 20]])),
    fit("boxes that are strings", all_annotations(bbox="1 1 30 30")),
    fit("RLE: counts beyond 32 bits", rle([2**33, 10])),
    fit("RLE: counts beyond 64 bits, whose sum wraps around to the right one", rle([2**64, 2400])),
    fit("RLE: negative counts", rle([-10, 2410])),
    fit("RLE: counts that do not add up", rle([10, 10])),
    fit("RLE: of another size than the image", rle([10, 14], 4, 6)),
    fit("RLE: of a million million pixels", rle([0, 10**12], 10**6, 10**6)),
    fit("RLE: compressed counts that are not ASCII", rle("\u00e9\u2603")),
    fit("RLE: compressed counts that end within a number", rle("PR1o")),
    load("cut off", cut_off()),
    load("no categories", without("categories")),
    load("an annotation id twice", all_annotations(id=1)),
    load("annotations of a category that is not listed", all_annotations(category_id=7)),
    load("an annotation without image_id", changed(lambda content: content["annotations"][0].pop("image_id"))),
    Case("meinst train, at the image", "an annotation without a box", boxless, ValueError),
    before("a category without a name", changed(lambda content: content["categories"][0].update(name=None))),
    before("empty", ""),
    before("no categories", without("categories")),
    before("one class where the config has six", coco_content()),
    check("cut off", cut_off()),
    Case("meinst check", "the file is not there", lambda folder: check_dataset_with(folder / "a.json")),
]
