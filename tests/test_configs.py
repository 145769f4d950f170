"""The shipped configs hold the published values, build, and are merged as Detectron2 merges them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from meinst_d2 import add_meinst_config
from meinst_d2.config import CHOICES, DEFAULT_COMPONENTS, check_choices
from meinst_d2.config_file import ConfigError, merge_config_file, merge_overrides
from meinst_d2.data.datasets import counting_classes
from tests.conftest import ROOT
from tests.models import flat, load_cfg

CONFIGS = sorted(path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))
FULL_SIZE = [name for name in CONFIGS if str(name).startswith("MEInst_R_50")]


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_it_builds_on_the_meta_device(name: Path) -> None:
    cfg = load_cfg(name, "MODEL.DEVICE", "meta", "MODEL.MEINST.COMPONENTS", "", "MODEL.TIMM.PRETRAINED", False)
    check_choices(cfg)
    with torch.device("meta"):
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":  # Detectron2's Mask R-CNN
        return
    encoder = getattr(model, "proposal_generator", model).mask_encoder
    dim = 28**2 if cfg.MODEL.MEINST.MASK_REPRESENTATION == "none" else cfg.MODEL.MEINST.DIM_MASK
    assert (encoder.dim == dim) if cfg.MODEL.MASK_ON else encoder is None


@pytest.mark.parametrize("name", FULL_SIZE, ids=str)
def test_what_all_published_configs_share(name: Path) -> None:
    cfg = load_cfg(name)
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",) and cfg.DATASETS.TEST == ("coco_2017_val",)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.OPTIMIZER) == (16, 0.01, "SGD")
    assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM) == (0.9, 1e-4, 0.0)
    assert cfg.MODEL.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675] and cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]
    meinst = cfg.MODEL.MEINST
    assert meinst.COMPONENTS == DEFAULT_COMPONENTS
    assert (meinst.DIM_MASK, meinst.MASK_SIZE, meinst.SIGMOID, meinst.WHITEN) == (60, 28, True, True)
    assert tuple(meinst.SIGMOID_CLAMP) == (0.01, 0.05) and meinst.LOSS_WEIGHT_MASK == 1.0
    assert (meinst.SCORE_THRESH_TEST, meinst.NMS_THRESH_TEST, meinst.PRE_NMS_TOPK_TEST) == (0.05, 0.6, 1000)
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100


ONE_X = ((60000, 80000, 90000), ("constant", 0.3333, 500))
THREE_X = ((180000, 240000, 270000), ("linear", 0.001, 1000))


@pytest.mark.parametrize(
    ("name", "deform", "train_sizes", "test_size", "schedule"),
    [
        ("MEInst_R_50_1x_none", "none", (800,), 800, ONE_X),
        ("MEInst_R_50_1x", "last", (800,), 800, ONE_X),
        ("MEInst_R_50_3x", "last", (640, 672, 704, 736, 768, 800), 800, THREE_X),
        ("MEInst_R_50_3x_512", "last", (384, 416, 448, 480, 512, 544), 512, THREE_X),
    ],
)
def test_each_published_config(name: str, deform: str, train_sizes: tuple, test_size: int, schedule: tuple) -> None:
    cfg = load_cfg(f"{name}.yaml")
    solver = cfg.SOLVER
    assert deform == cfg.MODEL.MEINST.DEFORM_CONV
    assert (train_sizes, test_size) == (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST)
    warmup = (solver.WARMUP_METHOD, solver.WARMUP_FACTOR, solver.WARMUP_ITERS)
    assert ((*solver.STEPS, solver.MAX_ITER), warmup) == schedule
    assert f"output/{name}" == cfg.OUTPUT_DIR


def test_every_key_is_read_somewhere() -> None:
    text = "".join(path.read_text() for path in (ROOT / "meinst_d2").rglob("*.py"))
    for key in flat(defaults()).keys() - flat(get_cfg()).keys():
        name = key.split(".")[-1]
        assert re.search(rf"\.{name}\b(?! = )", text), f"{key} has no effect"


def test_the_choices_are_those_of_the_code() -> None:
    from meinst_d2.fcos.losses import BoxLossType, CoefficientLossType
    from meinst_d2.modeling.inference import MaskOutput, PasteBox
    from meinst_d2.modeling.layers import DeformType, NormType
    from meinst_d2.modeling.mask_loss import MaskLossWeights, MaskRepresentation
    from meinst_d2.precision import Precision

    types = {"NORM": NormType, "BOX_LOSS_TYPE": BoxLossType, "MASK_PASTE_BOX": PasteBox, "MASK_OUTPUT": MaskOutput}
    types |= {"PRECISION": Precision, "DEFORM_CONV": DeformType, "MASK_REPRESENTATION": MaskRepresentation}
    types |= {"MASK_LOSS_TYPE": CoefficientLossType, "MASK_LOSS_WEIGHTS": MaskLossWeights}
    for key, choices in types.items():
        assert CHOICES[f"MODEL.MEINST.{key}"] == get_args(choices), key


def test_importing_the_package_imports_neither_torch_nor_detectron2() -> None:
    code = "import sys, meinst_d2; sys.exit(bool({'torch', 'detectron2'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_detectron2_the_glue_says_how_to_install_it() -> None:
    code = (
        "import importlib.util, sys; find = importlib.util.find_spec; "
        "importlib.util.find_spec = lambda name, *a: None if name == 'detectron2' else find(name, *a); "
        "sys.modules['detectron2'] = None\n"
        "import meinst_d2.modeling.head, meinst_d2.modeling.criterion\n"
        "for use in ('import meinst_d2.engine', 'from meinst_d2 import add_meinst_config', "
        "'from meinst_d2.modeling import MEInstDetector', 'import meinst_d2.checkpoint.checkpointer'):\n"
        "    try: exec(use)\n"
        "    except ImportError as error: assert 'pip install --no-build-isolation' in str(error), error\n"
        "    else: sys.exit(use)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def defaults() -> CfgNode:
    cfg = get_cfg()
    add_meinst_config(cfg)
    return cfg


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_a_file_gives_what_detectron2_makes_of_it(name: Path) -> None:
    ours, theirs = defaults(), defaults()
    merge_config_file(ours, ROOT / "configs" / name)
    theirs.merge_from_file(str(ROOT / "configs" / name))
    assert ours == theirs


def test_overrides_give_what_detectron2_makes_of_them() -> None:
    ours, theirs = defaults(), defaults()
    overrides = ["SOLVER.BASE_LR", "0.5", "DATASETS.TRAIN", "('a', 'b')", "MODEL.WEIGHTS", "w.pth", "SEED", 7]
    merge_overrides(ours, overrides)
    theirs.merge_from_list(overrides)
    assert ours == theirs and ours.SOLVER.BASE_LR == 0.5
    for key, meant in (("MODEL.MEINST.NUM_CLASS", "MODEL.MEINST.NUM_CLASSES"), ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER")):
        with pytest.raises(ConfigError, match=rf"unknown key {key} \(did you mean {meant}"):
            merge_overrides(defaults(), [key, 1])
    with pytest.raises(ConfigError, match="unknown key XYZ$"):
        merge_overrides(defaults(), ["XYZ", 1])


def test_aliases_bases_and_version_1(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("SEED: 1\nOUTPUT_DIR: a")
    (tmp_path / "b.yaml").write_text("SEED: 2")
    text = "_BASE_: [a.yaml, b.yaml]\nDATASETS: {TRAIN: &names [x, y], TEST: *names}\nVERSION: 2"
    (tmp_path / "c.yaml").write_text(text)
    cfg = defaults()
    merge_config_file(cfg, tmp_path / "c.yaml")
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.DATASETS.TEST) == (2, "a", ("x", "y"))
    for version in ("VERSION: 1\n", ""):  # an old key tells the version, too
        (tmp_path / "old.yaml").write_text(f"{version}MODEL: {{WEIGHT: w.pth}}")
        cfg = defaults()
        with counting_classes(cfg):
            merge_config_file(cfg, tmp_path / "old.yaml")
    (tmp_path / "old.yaml").write_text("MODEL: {WEIGHT: 5}")
    with pytest.raises(ConfigError, match="MODEL.WEIGHT must be of type str, such as '', not int"):
        merge_config_file(defaults(), tmp_path / "old.yaml")
    assert cfg.MODEL.WEIGHTS == "w.pth" and cfg.MODEL.MEINST.NUM_CLASSES == defaults().MODEL.MEINST.NUM_CLASSES
