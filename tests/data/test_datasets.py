import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from meinst_d2.data.datasets import class_names, dataset_dicts, read_category_names, register_shapes, require_dataset
from meinst_d2.data.shape_images import CATEGORIES
from meinst_d2.data.shapes import generate


def test_the_shapes_are_registered_by_name(tmp_path: Path) -> None:
    generate(tmp_path, {"train": 3})
    register_shapes(tmp_path)
    assert len(dataset_dicts("shapes_train")) == 3
    assert class_names("shapes_train") == MetadataCatalog.get("shapes_train").thing_classes == list(CATEGORIES)


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    register_shapes(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"'shapes_val' has no annotation file .*: run tools/make_shapes.py"):
        require_dataset("shapes_val")
    with pytest.raises(ValueError, match=r"'shapes_vla' is not registered \(did you mean .*shapes_train"):
        require_dataset("shapes_vla")
    with pytest.raises(ValueError, match="'mine' is not registered: register it with"):
        require_dataset("mine")


def test_category_names_are_read_without_the_annotations(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    categories = [{"id": 5, "name": "b", "supercategory": "x"}, {"id": 2, "name": "a"}]
    path.write_text(json.dumps({"categories": categories, "annotations": [{"note": "no 'categories' here"}] * 50}))
    assert read_category_names(path) == ["a", "b"]
    path.write_text(json.dumps({"info": {"categories": "all"}, "categories": categories, "images": []}))
    assert read_category_names(path) == ["a", "b"]
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="no readable 'categories'"):
        read_category_names(path)


def test_builtin_datasets_of_detectron2_are_known() -> None:
    assert "coco_2017_train" in DatasetCatalog
    assert len(class_names("coco_2017_train") or []) == 80
