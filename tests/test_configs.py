"""The shipped configs hold the published values, and every one of them builds."""

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
from tests.conftest import ROOT
from tests.models import load_cfg

CONFIGS = sorted(path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))
FULL_SIZE = [name for name in CONFIGS if str(name).startswith("MEInst_R_50")]


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_it_builds_on_the_meta_device(name: Path) -> None:
    cfg = load_cfg(name, "MODEL.DEVICE", "meta", "MODEL.MEINST.COMPONENTS", "")
    check_choices(cfg)
    with torch.device("meta"):
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
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


def keys(node: CfgNode, prefix: str = "") -> set[str]:
    return {
        key
        for name, value in node.items()
        for key in (keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {prefix + name})
    }


def test_every_key_is_read_somewhere() -> None:
    cfg, bare = get_cfg(), get_cfg()
    add_meinst_config(cfg)
    text = "".join(path.read_text() for path in (ROOT / "meinst_d2").rglob("*.py"))
    for key in keys(cfg) - keys(bare):
        name = key.split(".")[-1]
        assert re.search(rf"\.{name}\b(?! = )", text), f"{key} has no effect"


def test_the_choices_are_those_of_the_code() -> None:
    from meinst_d2.fcos.losses import BoxLossType, CoefficientLossType
    from meinst_d2.modeling.inference import MaskOutput, PasteBox
    from meinst_d2.modeling.layers import DeformType, NormType
    from meinst_d2.modeling.mask_loss import MaskLossWeights, MaskRepresentation
    from meinst_d2.precision import Precision

    assert CHOICES["MODEL.MEINST.NORM"] == get_args(NormType)
    assert CHOICES["MODEL.MEINST.BOX_LOSS_TYPE"] == get_args(BoxLossType)
    assert CHOICES["MODEL.MEINST.MASK_PASTE_BOX"] == get_args(PasteBox)
    assert CHOICES["MODEL.MEINST.MASK_OUTPUT"] == get_args(MaskOutput)
    assert CHOICES["MODEL.MEINST.PRECISION"] == get_args(Precision)
    assert CHOICES["MODEL.MEINST.DEFORM_CONV"] == get_args(DeformType)
    assert CHOICES["MODEL.MEINST.MASK_REPRESENTATION"] == get_args(MaskRepresentation)
    assert CHOICES["MODEL.MEINST.MASK_LOSS_TYPE"] == get_args(CoefficientLossType)
    assert CHOICES["MODEL.MEINST.MASK_LOSS_WEIGHTS"] == get_args(MaskLossWeights)


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
