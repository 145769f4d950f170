"""Objects and the locations of the feature levels."""

from pathlib import Path

import numpy as np
import torch

from meinst_d2.check import FINE, HURTS, Report, Severity
from meinst_d2.check import coverage as p
from meinst_d2.check.coco_file import scan
from meinst_d2.check.coverage import Settings, measure_coverage, settings_of
from meinst_d2.check.report import find
from meinst_d2.fcos.assign import AssignmentRule
from tests.check.datasets import Content, config, good_content, square, write
from tests.models import load_cfg

RULE = AssignmentRule(strides=(8, 16), size_bounds=(32,))


def settings(min_size: int, rule: AssignmentRule = RULE) -> Settings:
    return Settings(rule, min_size, 4 * min_size, True)


def content_of(*squares: tuple[float, float, float], size: tuple[int, int] = (48, 64)) -> Content:
    content = good_content()
    content["images"] = [{"id": 1, "file_name": "1.png", "height": size[0], "width": size[1]}]
    content["annotations"] = [
        {"id": n + 1, "image_id": 1, "category_id": 3, "iscrowd": 0, **square(*where)}
        for n, where in enumerate(squares)
    ]
    return content


def test_settings_of_configs() -> None:
    found = settings_of(load_cfg("MEInst_R_50_1x.yaml"))
    assert found.rule == AssignmentRule(strides=(8, 16, 32, 64, 128), size_bounds=(64, 128, 256, 512))
    assert (found.min_size, found.max_size, found.filter_empty) == (800, 1333, True)
    assert settings_of(config()).min_size == 48


def test_objects_that_no_cell_learns(tmp_path: Path) -> None:
    file = scan(write(tmp_path, content_of((5, 5, 6), (17, 17, 6))))
    coverage = measure_coverage(file, settings(48))
    assert file.having(p.NO_CELL).tolist() == [True, False] and not file.having(p.OUTDONE).any()
    assert coverage.per_level == (1, 0) and coverage.objects == 2
    file = scan(write(tmp_path, content_of((5, 5, 6), (17, 17, 6))))
    assert measure_coverage(file, settings(96)).per_level == (2, 0)  # on images twice as large it holds one
    file = scan(write(tmp_path, content_of((17, 17, 6.5), (17, 17, 6))))
    measure_coverage(file, settings(48))
    assert file.having(p.OUTDONE).tolist() == [True, False] and not file.having(p.NO_CELL).any()


def test_large_objects_are_learned_on_the_coarse_level(tmp_path: Path) -> None:
    file = scan(write(tmp_path, content_of((4, 4, 24), (50, 4, 10))))
    coverage = measure_coverage(file, settings(48))
    assert coverage.per_level == (2, 0)  # no side is farther than 24 pixels
    coverage = measure_coverage(file, settings(96))
    assert coverage.per_level == (2, 1)  # 8 to 56: the cell at 24 is 32 pixels from the far sides
    np.testing.assert_allclose(coverage.sides[1], 34, rtol=1e-6)  # the median of 48 and 20
    file = scan(write(tmp_path, content_of()))
    coverage = measure_coverage(file, settings(48))
    assert coverage.objects == 0 and coverage.per_level == (0, 0) and torch.tensor(coverage.sides).isnan().all()


def test_images_of_many_sizes_in_one_batch_are_like_each_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    content, flags = good_content(), []
    content["images"], content["annotations"] = [], []
    for image in range(1, 90):
        height, width = rng.integers(20, 120, 2).tolist()
        squares = [(*rng.uniform(0, 20, 2), rng.uniform(1, 15)) for _ in range(int(rng.integers(0, 6)))]
        alone = content_of(*squares, size=(height, width))
        file = scan(write(tmp_path, alone, images=False))
        measure_coverage(file, settings(48))
        flags += file.flags.tolist()
        content["images"] += [{**alone["images"][0], "id": image}]
        content["annotations"] += [
            {**a, "image_id": image, "id": len(content["annotations"]) + n}
            for n, a in enumerate(alone["annotations"], 1)
        ]
    file = scan(write(tmp_path, content, images=False))
    measure_coverage(file, settings(48))
    assert file.flags.tolist() == flags and file.having(p.NO_CELL).any() and file.having(p.OUTDONE).any()


def severity(tmp_path: Path, lost: int, learned: int) -> tuple[Severity, str]:
    squares = [(5.0, 5.0, 6.0)] * lost + [(17.0 + 8 * (n % 5), 17.0, 6.0) for n in range(learned)]
    content = content_of(*squares)
    content["images"] = [{**content["images"][0], "id": n} for n in range(len(squares))]
    for n, annotation in enumerate(content["annotations"]):
        annotation["image_id"] = n
    file = scan(write(tmp_path, content))
    coverage = measure_coverage(file, settings(48))
    (found,) = [f for f in find(Report(file, coverage)) if f.rule is p.NO_CELL]
    return found.severity, found.note


def test_a_few_lost_objects_are_usual(tmp_path: Path) -> None:
    assert severity(tmp_path, 1, 99) == (FINE, "1.0 % of the objects")
    assert severity(tmp_path, 4, 96) == (HURTS, "4.0 % of the objects")
    assert severity(tmp_path, 20, 80) == (HURTS, "20.0 % of the objects; 20 % of box")
