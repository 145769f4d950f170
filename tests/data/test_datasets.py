import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from meinst_d2.commands import train as train_command
from meinst_d2.data.datasets import class_names, dataset_dicts, register_coco, register_shapes, require_dataset
from meinst_d2.data.shapes import CATEGORIES, generate
from tests.conftest import ROOT


def test_shapes_and_detectron2s_own_datasets_are_registered_by_name(tmp_path: Path) -> None:
    generate(tmp_path, {"train": 3})
    register_shapes(tmp_path)
    assert len(dataset_dicts("shapes_train")) == 3
    assert class_names("shapes_train") == MetadataCatalog.get("shapes_train").thing_classes == list(CATEGORIES)
    assert "coco_2017_train" in DatasetCatalog
    assert len(class_names("coco_2017_train") or []) == 80


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    register_shapes(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"'shapes_val' has no annotation file .*: run meinst shapes"):
        require_dataset("shapes_val")
    with pytest.raises(ValueError, match="'mine' is not registered: name its files with --coco-dataset mine="):
        require_dataset("mine")


@pytest.fixture
def two_classes(tmp_path: Path) -> str:
    """The spec of a dataset of two classes without images."""
    categories = [{"id": i, "name": name} for i, name in ((4, "b"), (3, "a"))]
    file = tmp_path / "two.json"
    file.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    (tmp_path / "images").mkdir()
    return f"{tmp_path.name}={file}:{tmp_path / 'images'}"


def test_a_dataset_is_registered_by_a_line(two_classes: str, tmp_path: Path) -> None:
    name = register_coco(two_classes)
    assert name == tmp_path.name and register_coco(two_classes) == name
    assert class_names(name) == ["a", "b"] and dataset_dicts(name) == []
    with pytest.raises(ValueError, match="of other files already; choose another name"):
        register_coco(f"{name}=other.json:images")
    register_coco(f"{name}_gone=gone.json:images")
    with pytest.raises(FileNotFoundError, match="has no annotation file gone.json: name one that exists"):
        require_dataset(f"{name}_gone")


@pytest.mark.parametrize("spec", ["mine", "mine=a.json", "=a.json:b", "mine=a.txt:b", "mine=a.json:"])
def test_a_line_of_another_form_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="give NAME=ANNOTATIONS.json:IMAGES"):
        register_coco(spec)


@pytest.mark.parametrize(
    ("config", "overrides", "classes"),
    [
        ("MEInst_R_50_1x_none.yaml", {}, (2, 2)),
        ("MEInst_R_50_1x_none.yaml", {"MODEL.MEINST.NUM_CLASSES": 7}, (7, 2)),
        ("MEInst_RetinaNet_R_50_1x.yaml", {}, (2, 2)),
        ("quick/tiny.yaml", {}, (6, 2)),
        ("MEInst_R_50_1x_none.yaml", {"DATASETS.TRAIN": ("absent",)}, (80, 80)),
    ],
)
def test_classes_are_those_of_the_dataset(
    two_classes: str, config: str, overrides: dict[str, Any], classes: tuple[int, int]
) -> None:
    settings = {"DATASETS.TRAIN": (register_coco(two_classes),)} | overrides
    opts = [x for pair in settings.items() for x in pair]
    cfg = train_command.load_config(argparse.Namespace(config_file=str(ROOT / "configs" / config), opts=opts))
    assert classes == (cfg.MODEL.MEINST.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CLASSES)
