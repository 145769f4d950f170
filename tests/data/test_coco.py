"""The reader of COCO files."""

import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from meinst_d2.data.coco import (
    category_numbers,
    elements,
    read_category_names,
    read_coco,
    read_coco_json,
    read_sections,
)
from meinst_d2.data.instances import make_templates
from meinst_d2.masks import rle as I

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]


def coco(**changes: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "height": 40, "width": 50, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 10, 20, 20], "segmentation": [SQUARE]}],
        "categories": [{"id": 3, "name": "thing"}],
    } | changes


def test_a_coco_file_gives_corners_and_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco()))
    (read,) = read_coco_json(path)
    assert read.box == (10, 10, 30, 30) and read.image_size == (40, 50) and read.category == 0 and not read.iscrowd
    for order in (("annotations", "categories", "images"), ("categories", "images", "annotations")):
        path.write_text(json.dumps({section: coco()[section] for section in order}))
        (read,) = read_coco_json(path)
        assert read.image_size == (40, 50) and read.category == 0
    path.write_text('{"images": [], ' + json.dumps(coco())[1:])
    (read,) = read_coco_json(path)
    assert read.image_size == (40, 50)


def test_numbers_of_classes_and_unknown_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    annotations = [{"image_id": 7, "category_id": i, "bbox": [0, 0, 1, 1]} for i in (9, 3, 4)] + [{"image_id": 7}]
    categories = [{"id": 9, "name": "b"}, {"id": 3, "name": "a"}]
    path.write_text(json.dumps(coco(annotations=annotations, categories=categories)))
    assert [read.category for read in read_coco_json(path)] == [1, 0, -1, -1]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco(annotations=[{"image_id": [7], "category_id": {}, "bbox": [0, 0, 1, 1]}])))
    (read,) = read_coco_json(path)
    assert read.image_size == (0, 0) and read.category == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps({"info": float("nan"), **coco()})[:-3], "cut off"),
        ('{"images": [1 2]}', r"expected ',' or '\]' \(byte 14\)"),
        (json.dumps(coco(images=[{"id": 1, "height": 1e999, "width": 4}])), "image number 0 needs"),
        (json.dumps(coco(images=[{"id": [1], "height": 4, "width": 4}])), "image number 0 needs"),
        (json.dumps(coco(images=[{"id": 1, "height": 2**63, "width": 4}])), "image number 0 needs"),
        (json.dumps(coco(images=[{"id": 1, "height": "9" * 30, "width": 4}])), "image number 0 needs"),
        (json.dumps(coco(categories=[{"id": 1}, {"id": [1]}])), "category number 1 needs an id"),
        (json.dumps(coco(images=["a.jpg"])), "image number 0 is a string instead of an object"),
        (json.dumps(coco(categories=[None])), "category number 0 is null instead of an object"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_coco_json(path)


def test_a_file_that_is_cut_off_or_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "a.json", json.dumps(coco()).encode()
    wrong = [text[:end] for end in range(len(text))] + [text.replace(b"a.jpg", b"\xff"), text + b" x", b"{1: 2}"]
    wrong += [text.replace(b'"height": ', more) for more in (b'"height" ', b'"height": [, ', b'"height": 1 ')]
    for content in wrong:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json"):
            read_coco_json(path)


@pytest.mark.parametrize("depth", [10, 300, 600, 900, 3000, 100_000])
def test_a_segmentation_that_is_nested_deeply_is_useless_or_refused(tmp_path: Path, depth: int) -> None:
    text = json.dumps(coco(annotations=[{**coco()["annotations"][0], "segmentation": "HERE"}]))
    (tmp_path / "a.json").write_text(text.replace('"HERE"', "[" * depth + "]" * depth))
    try:
        assert make_templates(read_coco_json(tmp_path / "a.json"), 4).skipped == {I.MALFORMED: 1}
    except ValueError as error:  # how deep is too deep is up to Python
        assert "a.json" in str(error) and "nested too deeply" in str(error) and depth > 100


@pytest.mark.parametrize("box", [None, [1, 2, 3], "box", [1, 2, 3, "4"], {"x": 1}, [[1, 2, 3, 4]], [1e999, 0, 1, 1]])
def test_a_box_that_is_none_is_without_area(tmp_path: Path, box: Any) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco(annotations=[{**coco()["annotations"][0], "bbox": box}])))
    assert make_templates(read_coco_json(path), 4).skipped == {I.NO_BOX: 1}


def test_names_are_needed_where_classes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for name in (None, 5, ["a"]):
        path.write_text(json.dumps(coco(categories=[{"id": 3, "name": name}])))
        for read in (read_coco, read_category_names):
            with pytest.raises(ValueError, match=r"category number 0 needs a name that is a string, it has [N5\[]"):
                read(path)
        assert len(read_coco_json(path)) == 1


@pytest.mark.parametrize(
    "ids", [[1, 2.0, 3], [7, 3, 3.5, -1], ["10", "9", "1"], [3, 7, 3], [True, 0, 2], ["b"], [2**70, 5]]
)
def test_categories_are_numbered_as_detectron2_numbers_them(tmp_path: Path, ids: list[Any]) -> None:
    path = tmp_path / "a.json"
    categories = [{"id": id_, "name": f"class {number}"} for number, id_ in enumerate(ids)]
    annotations = [{**coco()["annotations"][0], "id": n, "category_id": id_} for n, id_ in enumerate(ids)]
    path.write_text(json.dumps(coco(categories=categories, annotations=annotations)))
    name = f"numbering_{tmp_path.name}"
    (record,) = load_coco_json(str(path), "", name)
    metadata = MetadataCatalog.get(name)
    read = read_coco(path)
    assert category_numbers(ids) == category_numbers(read.category_ids) == metadata.thing_dataset_id_to_contiguous_id
    assert read.annotations.categories.tolist() == [a["category_id"] for a in record["annotations"]]
    assert [a.category for a in read_coco_json(path)] == read.annotations.categories.tolist()
    if len(set(ids)) == len(ids):
        assert read.class_names == read_category_names(path) == metadata.thing_classes
    MetadataCatalog.remove(name)


def test_everything_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    images = [{"id": "img_1", "height": 40.0, "width": 50, "file_name": "a.jpg"}, {"id": 2.5, "height": 4, "width": 5}]
    annotations = [{"id": id_, "image_id": image} for id_, image in (("x", "img_1"), (None, 2.5), (0, "2.5"))]
    path.write_text(json.dumps(coco(images=images, annotations=annotations)))
    read = read_coco(path)
    assert read.images == [images[0], images[1]] and read.image_rows.tolist() == [0, 1, -1]
    assert read.annotation_ids == ["x", None, 0] and read.name_of(0) == f"{path}: annotation number 0 (id 'x')"
    assert [a.image_size for a in read.annotations] == [(40, 50), (4, 5), (0, 0)]


def test_what_only_python_knows_is_read_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    words = ['NaN -Infinity \\ " ', "caf\u00e9 \ud800", r"\ud800", float("nan"), float("inf"), float("-inf"), 10**400]
    content = coco(annotations=[{**coco()["annotations"][0], "note": word, "area": word} for word in words], more=words)
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False, indent=1)):
        path.write_bytes(b"\xef\xbb\xbf" + text.encode("utf-8", "surrogatepass"))
        sections = read_sections(path)
        assert repr(list(elements(sections, "annotations", path))) == repr(content["annotations"])
        assert repr(json.loads(bytes(sections["more"]))) == repr(words)
        assert len(read_coco_json(path)) == len(words)
