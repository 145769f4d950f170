"""Datasets with several faults at once: the exit status and the objects to learn are those of training itself."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meinst_d2.check import Report
from meinst_d2.check import annotation_rules as p
from meinst_d2.check.coco_file import write_without_bad
from tests.check.datasets import HEIGHT, IMAGES, WIDTH, Content, check, good_content, train, write

Fault = Callable[[np.random.Generator, dict[str, Any]], None]


def give(key: str, *values: Any) -> Fault:
    """One of the values for a key."""

    def spoil(rng: np.random.Generator, annotation: dict[str, Any]) -> None:
        annotation[key] = values[rng.integers(len(values))]

    return spoil


def take(*keys: str) -> Fault:
    """The key is not there."""

    def spoil(rng: np.random.Generator, annotation: dict[str, Any]) -> None:
        annotation.pop(keys[rng.integers(len(keys))], None)

    return spoil


CORNERS = [40.0, 4.0, 54.0, 4.0, 54.0, 18.0]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [900, 40, HEIGHT * WIDTH - 940]}
TURNED = {"size": [WIDTH, HEIGHT], "counts": RUNS["counts"]}

HARMLESS: list[Fault] = [
    give("iscrowd", 1, 0, True),
    give("image_id", 77, 1, 2, 2.0, "2"),
    give("segmentation", [], [[1.0, 2.0]], [CORNERS, [1.0]], [[float("nan"), *CORNERS[1:]]], RUNS, TURNED, None),
    give("segmentation", {"size": [HEIGHT, WIDTH], "counts": "~"}, {"size": [HEIGHT, WIDTH], "counts": [5]}, "x" * 8),
    give("bbox", [90.0, 4.0, 5.0, 5.0], [4.0, 4.0, 0.0, 9.0], [-9.0, -9.0, 30.0, 30.0], [4, 4, 9, 1e9]),
    give("bbox", [float("nan"), 0.0, 4.0, 4.0], [4.0, 4.0, float("inf"), 4.0], [30.0, 30.0, -9.0, -9.0]),
    give("bbox", [40.0, 4.0, "14", 14.0], [True, 4.0, 14.0, 14.0], [40.0, 4.0, None, 14.0]),
    give("ignore", 0, False, 0.0),
    give("area", "large", None, 5),
    take("area", "iscrowd", "segmentation"),
]
FATAL: list[Fault] = [
    give("id", 1, 10, 11, None, [3], "a"),
    give("category_id", 5, "3", None, 7.0),
    give("bbox", [], None, [1.0, 2.0], "abcd", [1.0, "wide", 3.0, 4.0]),
    give("segmentation", 5, [3], [CORNERS, 5], {"counts": [1]}, {"size": [HEIGHT, WIDTH]}, {"size": 3, "counts": [1]}),
    give("ignore", 1, True, "no"),
    take("id", "category_id", "image_id", "bbox"),
]


def spoiled(seed: int) -> Content:
    """One to six faults; in every other dataset none that could stop training."""
    rng = np.random.default_rng(seed)
    faults = HARMLESS if seed % 2 else HARMLESS + FATAL
    content = good_content()
    for _ in range(rng.integers(1, 7)):
        annotation = content["annotations"][rng.integers(len(content["annotations"]))]
        faults[rng.integers(len(faults))](rng, annotation)
    return content


def objects(report: Report) -> dict[int, int]:
    """How many each image teaches."""
    file = report.file
    return Counter(int(file.image_ids[row]) for row in file.image_rows[file.learned].tolist())


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_the_status_is_what_training_does(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 20):
        path = write(tmp_path, spoiled(seed), images=seed == first)
        report = check(path)
        try:
            trained = train(path)
        except Exception as error:
            assert report.severity == p.STOPS, f"seed {seed}: {error!r}"
            continue
        stops = [found.rule.key for found in report.findings if found.severity == p.STOPS]
        assert not stops, f"seed {seed}: {stops}"
        if not report.file.having(p.NOT_FINITE, p.NEGATIVE, p.NO_NUMBERS).any():  # those are learned by accident
            assert {k: len(v) for k, v in trained.items() if len(v)} == dict(objects(report)), f"seed {seed}"


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_what_is_left_can_be_trained_on(tmp_path: Path, first: int) -> None:
    for seed in range(first, first + 50, 2):
        path = write(tmp_path, spoiled(seed), images=seed == first)
        write_without_bad(check(path).file, tmp_path / "usable.json")
        report = check(tmp_path / "usable.json")
        assert report.severity < p.STOPS, f"seed {seed}"
        assert sum(map(len, train(tmp_path / "usable.json").values())) == report.file.learned.sum(), f"seed {seed}"
        assert len(json.loads((tmp_path / "usable.json").read_text())["images"]) == IMAGES
