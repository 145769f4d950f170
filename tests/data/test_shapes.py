import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meinst_d2.commands import shapes as shapes_command
from meinst_d2.data.coco import read_coco_json
from meinst_d2.data.instances import make_templates
from meinst_d2.data.shapes import CATEGORIES, ShapesConfig, draw_image, generate
from meinst_d2.masks.rle import CROWD, decode_rle


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 120, "val": 4}, workers=2)
    return root


def test_the_same_seed_draws_the_same_pixels_with_any_number_of_workers(dataset: Path, tmp_path: Path) -> None:
    generate(tmp_path, {"train": 6}, workers=1)
    for number in range(6):
        name = f"train/{number:06d}.png"
        assert (np.asarray(Image.open(dataset / name)) == np.asarray(Image.open(tmp_path / name))).all()
    generate(tmp_path / "other", {"train": 1}, seed=1)
    first, other = dataset / "train/000000.png", tmp_path / "other/train/000000.png"
    assert (np.asarray(Image.open(first)) != np.asarray(Image.open(other))).any()
    train, val = (np.asarray(Image.open(dataset / split / "000000.png")) for split in ("train", "val"))
    assert (train != val).any()


def test_it_stresses_what_it_says(dataset: Path) -> None:
    content = json.loads((dataset / "annotations/instances_train.json").read_text())
    objects = [a for a in content["annotations"] if not a["iscrowd"]]
    by_category = Counter(CATEGORIES[a["category_id"] - 1] for a in objects)
    assert set(by_category) == set(CATEGORIES) and min(by_category.values()) > 50
    rings = [a for a in objects if CATEGORIES[a["category_id"] - 1] == "ring"]
    assert all(isinstance(a["segmentation"], dict) for a in rings)
    assert any(isinstance(a["segmentation"], list) and len(a["segmentation"]) == 2 for a in objects)
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert crowds and all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    with_objects = {a["image_id"] for a in objects}
    assert 0 < len(content["images"]) - len(with_objects) < 20
    assert len(objects) / len(content["images"]) >= 4
    assert np.mean([max(a["bbox"][2:]) < 32 for a in objects]) >= 0.25
    templates = make_templates(read_coco_json(dataset / "annotations/instances_train.json"), 28)
    assert set(templates.skipped) == {CROWD}


def test_rings_have_a_hole_and_cut_discs_two_parts() -> None:
    ring = cut = 0
    for number in range(40):
        _, annotations = draw_image(ShapesConfig(), (0, 0, number))
        for annotation in annotations:
            name, segmentation = CATEGORIES[annotation["category_id"] - 1], annotation["segmentation"]
            if name == "ring":
                mask = decode_rle(segmentation, 160, 160)
                x, y, w, h = annotation["bbox"]
                ring += not mask[round(y + h / 2), min(round(x + w / 2), 159)]
            cut += name == "cut" and isinstance(segmentation, list) and len(segmentation) == 2
    assert ring > 20 and cut > 5


def test_any_size_and_number_of_objects() -> None:
    image, annotations = draw_image(ShapesConfig(height=96, width=240, min_objects=1, max_objects=1, empty=0), (3,))
    assert image.shape == (96, 240, 3) and image.dtype == np.uint8
    assert 1 <= len(annotations) <= 2
    assert draw_image(ShapesConfig(empty=1), (0,))[1] == []


def test_one_object_per_image_from_the_command_line(tmp_path: Path) -> None:
    size = ["--size", "48", "64", "--max-side", "30"]
    shapes_command.main(["--output", str(tmp_path), "--train", "60", "--val", "0", "--max-objects", "1", *size])
    content = json.loads((tmp_path / "annotations/instances_train.json").read_text())
    of_image = Counter(a["image_id"] for a in content["annotations"] if not a["iscrowd"])
    assert len(content["images"]) == 60 and set(of_image.values()) == {1}


def test_impossible_options_are_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        ("--seed -1", "--seed must not be negative, got -1"),
        ("--size 0 160", "--size must be at least 1, got 0"),
        ("--min-side 40 --max-side 30", "--min-side 40 is above --max-side 30"),
    ):
        with pytest.raises(SystemExit) as stop:
            shapes_command.main(["--output", str(tmp_path / "out"), *options.split()])
        assert stop.value.code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()
