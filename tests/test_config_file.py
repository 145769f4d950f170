"""Configs that are right are merged as Detectron2 merges them; what is wrong is in tests/bad_input."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from meinst_d2 import add_meinst_config
from meinst_d2.config_file import ConfigError, merge_config_file, merge_overrides
from meinst_d2.data.datasets import counting_classes
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def defaults() -> CfgNode:
    cfg = get_cfg()
    add_meinst_config(cfg)
    return cfg


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_a_file_gives_what_detectron2_makes_of_it(path: Path) -> None:
    ours, theirs = defaults(), defaults()
    merge_config_file(ours, path)
    theirs.merge_from_file(str(path))
    assert ours == theirs


def test_overrides_give_what_detectron2_makes_of_them() -> None:
    ours, theirs = defaults(), defaults()
    overrides = ["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "('a', 'b')", "MODEL.WEIGHTS", "w.pth", "SEED", 7]
    merge_overrides(ours, overrides)
    theirs.merge_from_list(overrides)
    assert ours == theirs and ours.SOLVER.BASE_LR == 0.5
    for key, meant in (("MODEL.MEINST.NUM_CLASS", "MODEL.MEINST.NUM_CLASSES"), ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER")):
        with pytest.raises(ConfigError, match=rf"there is no key {key} \(did you mean {meant}"):
            merge_overrides(defaults(), [key, 1])
    with pytest.raises(ConfigError, match="there is no key XYZ$"):
        merge_overrides(defaults(), ["XYZ", 1])


def test_aliases_bases_and_version_1(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("SEED: 1\nOUTPUT_DIR: a")
    (tmp_path / "b.yaml").write_text("SEED: 2")
    text = "_BASE_: [a.yaml, b.yaml]\nDATASETS: {TRAIN: &names [x, y], TEST: *names}\nVERSION: 2"
    (tmp_path / "c.yaml").write_text(text)
    cfg = defaults()
    merge_config_file(cfg, tmp_path / "c.yaml")
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.DATASETS.TEST) == (2, "a", ("x", "y"))
    (tmp_path / "old.yaml").write_text("VERSION: 1\nMODEL: {WEIGHT: w.pth}")
    cfg = defaults()
    with counting_classes(cfg):
        merge_config_file(cfg, tmp_path / "old.yaml")
    assert cfg.MODEL.WEIGHTS == "w.pth" and cfg.MODEL.MEINST.NUM_CLASSES == defaults().MODEL.MEINST.NUM_CLASSES
