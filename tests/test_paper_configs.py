"""configs/paper/ and configs/options/ say what docs/paper.md says of them, and nothing twice."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from meinst_d2.commands import fit as fit_command
from tests.conftest import ROOT
from tests.models import flat, load_cfg

PAPER = sorted(path.stem for path in (ROOT / "configs/paper").glob("*.yaml"))
OPTIONS = sorted(path.stem for path in (ROOT / "configs/options").glob("*.yaml"))
BOTH = [*(f"paper/{name}" for name in PAPER), *(f"options/{name}" for name in OPTIONS)]

PLAIN, DEFORMABLE, THREE_X = "MEInst_R_50_1x_none", "MEInst_R_50_1x", "MEInst_R_50_3x"
R101 = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-101.pkl", "MODEL.RESNETS.DEPTH": 101}
X101 = {"MODEL.WEIGHTS": "detectron2://ImageNetPretrained/FAIR/X-101-32x8d.pkl", "MODEL.RESNETS.DEPTH": 101}
X101 |= {"MODEL.PIXEL_STD": [57.375, 57.12, 58.395], "MODEL.RESNETS.STRIDE_IN_1X1": False}
X101 |= {"MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 8}
FCOS = {"MODEL.MASK_ON": False}
TWO_X = {"SOLVER.STEPS": (120000, 160000), "SOLVER.MAX_ITER": 180000}
TWO_X |= {"INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800)}


def meinst(**keys: Any) -> dict[str, Any]:
    return {f"MODEL.MEINST.{key}": value for key, value in keys.items()}


def output_of_fit(datasets: Sequence[str], size: int, number: int, *flags: str) -> str:
    """Where meinst fit writes components by default."""
    sizes = ("--mask-size", str(size), "--dim", str(number))
    return str(fit_command.parse_args(["--dataset", *datasets, *sizes, *flags]).output)


def dim(number: int) -> dict[str, Any]:
    return meinst(DIM_MASK=number, COMPONENTS=output_of_fit(["coco_2017_train"], 28, number))


ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "table1_fcos_r_50": (PLAIN, FCOS),
    "table1_fcos_r_101": (PLAIN, FCOS | R101 | TWO_X),
    "table1_fcos_x_101": (PLAIN, FCOS | X101 | TWO_X),
    "table2_dim_20": (DEFORMABLE, dim(20)),
    "table2_dim_40": (DEFORMABLE, dim(40)),
    "table2_dim_80": (DEFORMABLE, dim(80)),
    **dict.fromkeys(("table2_dim_60", "table3_explicit", "table4_l2", "table6_with_mask"), (DEFORMABLE, {})),
    "table3_implicit": (DEFORMABLE, meinst(MASK_REPRESENTATION="implicit")),
    "table3_none": (DEFORMABLE, meinst(MASK_REPRESENTATION="none", COMPONENTS="")),
    "table4_smooth_l1": (DEFORMABLE, meinst(MASK_LOSS_TYPE="smooth_l1")),
    "table4_l1": (DEFORMABLE, meinst(MASK_LOSS_TYPE="l1")),
    "table4_cosine": (DEFORMABLE, meinst(MASK_LOSS_TYPE="cosine")),
    "table5_plain": (PLAIN, {}),
    "table5_large_kernel": (PLAIN, meinst(MASK_PREDICTOR="large_kernel")),
    "table5_deformable": (PLAIN, meinst(DEFORM_CONV="last")),
    "table6_without_mask": (DEFORMABLE, FCOS),
    "table8_r_101_1x": (PLAIN, R101),
    "table8_x_101_1x": (PLAIN, X101),
    "table8_r_101_dcn_1x": (DEFORMABLE, R101),
    "table8_x_101_dcn_1x": (DEFORMABLE, X101),
    "table8_r_101_3x": (THREE_X, R101 | meinst(DEFORM_CONV="none")),
    "table8_x_101_3x": (THREE_X, X101 | meinst(DEFORM_CONV="none")),
    "table8_x_101_dcn_3x": (THREE_X, X101),
}


def difference(cfg: CfgNode, base: CfgNode) -> dict[str, Any]:
    """What ``cfg`` has in another way than ``base``."""
    ours, theirs = flat(cfg), flat(base)
    assert ours.keys() == theirs.keys()
    return {key: value for key, value in ours.items() if value != theirs[key]}


@pytest.mark.parametrize("name", PAPER)
def test_a_row_differs_from_the_published_config_in_this_alone(name: str) -> None:
    base, expected = ROWS[name]
    found = difference(load_cfg(f"paper/{name}.yaml"), load_cfg(f"{base}.yaml"))
    assert found == expected | {"OUTPUT_DIR": f"output/paper/{name}"}


def test_every_row_has_its_config_and_every_config_its_place() -> None:
    assert set(PAPER) == set(ROWS)
    for name in BOTH:
        cfg = load_cfg(f"{name}.yaml")
        std = [57.375, 57.12, 58.395] if "X-101" in cfg.MODEL.WEIGHTS else [1.0, 1.0, 1.0]
        assert ([103.53, 116.28, 123.675], std) == (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD), name
        file = cfg.MODEL.MEINST.COMPONENTS
        if not file or name in ("options/not_whitened", "options/no_sigmoid"):  # these name a file with --output
            continue
        flags = ["--class-specific"] * (cfg.MODEL.MEINST.ENCODER == "ClassPCAEncoder")
        size, number = cfg.MODEL.MEINST.MASK_SIZE, cfg.MODEL.MEINST.DIM_MASK
        assert file == output_of_fit(cfg.DATASETS.TRAIN, size, number, *flags), name


@pytest.mark.parametrize("name", BOTH)
def test_a_file_holds_only_what_differs_from_its_base(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    content = yaml.safe_load(path.read_text())
    base = (path.parent / content.pop("_BASE_")).resolve()
    found = difference(load_cfg(f"{name}.yaml"), load_cfg(base))
    assert flat(content).keys() == found.keys()
    assert found["OUTPUT_DIR"] == f"output/{name}" and (len(found) > 1 or name.startswith("paper/"))


@pytest.mark.parametrize("name", ["table1_fcos_x_101", "table8_x_101_1x", "table8_x_101_3x", "table8_x_101_dcn_3x"])
def test_resnext_101_32x8d_is_built_as_it_was_pretrained(name: str) -> None:
    with torch.device("meta"):
        model = build_model(load_cfg(f"paper/{name}.yaml", "MODEL.DEVICE", "meta", "MODEL.MEINST.COMPONENTS", ""))
    stages = [getattr(model.backbone.bottom_up, f"res{i}") for i in (2, 3, 4, 5)]
    assert [len(stage) for stage in stages] == [3, 4, 23, 3]
    for width, stage in zip((256, 512, 1024, 2048), stages, strict=True):  # groups of 8 channels, doubling
        stride = (1, 1) if stage is stages[0] else (2, 2)
        assert (stage[0].conv1.stride, stage[0].conv2.stride) == ((1, 1), stride)
        assert {(block.conv2.groups, block.conv2.out_channels) for block in stage} == {(32, width)}


DOCUMENT = (ROOT / "docs/paper.md").read_text()


def test_the_document_names_every_config() -> None:
    linked = set(re.findall(r"\.\./configs/((?:paper|options)/\w+)\.yaml", DOCUMENT))
    assert linked == set(BOTH)
    for target in re.findall(r"\]\((?!http)([^)]+)\)", DOCUMENT):
        assert (ROOT / "docs" / target).exists(), target
    for label, name in re.findall(r"\[(\w+)\]\(\.\./configs/\w+/(\w+)\.yaml\)", DOCUMENT):
        assert label == name
    for config in re.findall(r"--config-file (configs/[\w/]+\.yaml)", DOCUMENT):
        assert (ROOT / config).is_file() or config == "configs/paper/ROW.yaml"
    for name in PAPER:
        table = re.match(r"table(\d)", name)
        rows = [line for line in DOCUMENT.splitlines() if line.startswith("|") and f"/{name}.yaml" in line]
        section = DOCUMENT[: DOCUMENT.index(rows[0])].rsplit("\n## ", 1)[1].splitlines()[0]
        assert len(rows) == 1 and table is not None
        number = int(table[1])
        assert rows[0].startswith(f"| {number} |") if 2 <= number <= 6 else f"Table {number}" in section
