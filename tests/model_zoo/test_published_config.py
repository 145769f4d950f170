"""Their configs, key by key. Expected values are written out, not computed from the tables of the importer."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.config_file import read_plain_yaml
from meinst_d2.model_zoo.adelaidet.config import DEFAULTS, TranslatedConfig, translate_config
from meinst_d2.model_zoo.trained import build, require_same_tensors
from meinst_d2.model_zoo.zoo import config_from_text
from meinst_d2.modeling.proposal_generator import settle_names
from tests.parity_cases import FOLDER
from tests.published_configs import write_published_config


def translated(folder: Path, **meinst: Any) -> TranslatedConfig:
    overrides = {f"MODEL.MEInst.{key}": value for key, value in meinst.items()}
    return translate_config(read_plain_yaml(write_published_config(folder, "Base-MEInst.yaml", overrides)))


def config_of(translation: TranslatedConfig) -> Any:
    return config_from_text(yaml.safe_dump(translation.keys))


THEIR_DEFAULTS = """
{PRECISION: float32, CHANNELS_LAST: auto, NUM_CLASSES: 80, IN_FEATURES: [p3, p4, p5, p6, p7], TOP_LEVELS: 2,
SIZES_OF_INTEREST: [64, 128, 256, 512], NUM_CLS_CONVS: 4, NUM_BOX_CONVS: 4, NUM_MASK_CONVS: 4, NUM_SHARE_CONVS: 0,
NORM: GN, DEFORM_CONV: "none", DEFORM_MODULATED: false, MASK_PREDICTOR: conv, LARGE_KERNEL_SIZE: 9, USE_SCALE: true,
PRIOR_PROB: 0.01, CENTER_SAMPLING: true, CENTER_SAMPLING_RADIUS: 1.5, FOCAL_LOSS_ALPHA: 0.25, FOCAL_LOSS_GAMMA: 2.0,
BOX_LOSS_TYPE: giou, LOSS_WEIGHT_CLS: 1.0, LOSS_WEIGHT_BOX: 1.0, LOSS_WEIGHT_CENTERNESS: 1.0, LOSS_WEIGHT_MASK: 1.0,
SCORE_THRESH_TEST: 0.05, THRESH_WITH_CENTERNESS: false, PRE_NMS_TOPK_TEST: 1000, NMS_THRESH_TEST: 0.6,
MASK_REPRESENTATION: explicit, ENCODER: PCAEncoder, MASK_LOSS_TYPE: l2, MASK_LOSS_WEIGHTS: uniform, DIM_MASK: 60,
MASK_SIZE: 28, SIGMOID: true, WHITEN: true, COMPONENTS: "", COMPONENTS_CONFLICT: stop, MASK_PASTE_BOX: clipped,
MASK_OUTPUT: bitmask}
"""


def test_a_short_file_stands_on_their_defaults(tmp_path: Path) -> None:
    cfg = config_of(translated(tmp_path))
    assert dict(cfg.MODEL.MEINST) == {**yaml.safe_load(THEIR_DEFAULTS), "SIGMOID_CLAMP": (0.01, 0.05)}
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 100 and cfg.INPUT.RANDOM_FLIP == "horizontal"
    assert cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE == "MEInstDetector"
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800) and cfg.SOLVER.STEPS == (60000, 80000)
    assert cfg.DATASETS.TEST == ("coco_2017_val",) and cfg.SOLVER.BASE_LR == 0.01


UNCHANGED = [
    {"NUM_CLASSES": 3},
    {"PRIOR_PROB": 0.02},
    {"NORM": "GN"},
    {"NORM": "none"},
    {"USE_SCALE": False},
    {"SIZES_OF_INTEREST": [32, 64, 128, 256]},
    {"NUM_CLS_CONVS": 1, "NUM_BOX_CONVS": 2, "NUM_MASK_CONVS": 3, "NUM_SHARE_CONVS": 5},
    {"WHITEN": False, "SIGMOID": False},
    {"DIM_MASK": 20, "MASK_SIZE": 14},
]


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *((keys, keys) for keys in UNCHANGED),
        ({"INFERENCE_TH_TEST": 0.3, "INFERENCE_TH_TRAIN": 0.1}, {"SCORE_THRESH_TEST": 0.3}),
        ({"NMS_TH": -1.0}, {"NMS_THRESH_TEST": -1.0}),
        ({"PRE_NMS_TOPK_TEST": 500, "PRE_NMS_TOPK_TRAIN": 1}, {"PRE_NMS_TOPK_TEST": 500}),
        ({"NORM": "NaiveGN"}, {"NORM": "GN"}),
        ({"NORM": "BN"}, {"NORM": "none"}),
        ({"THRESH_WITH_CTR": True}, {"THRESH_WITH_CENTERNESS": True}),
        ({"LOSS_ALPHA": 0.5, "LOSS_GAMMA": 1.0}, {"FOCAL_LOSS_ALPHA": 0.5, "FOCAL_LOSS_GAMMA": 1.0}),
        ({"TOP_LEVELS": 0, "USE_RELU": False}, {"TOP_LEVELS": 2}),
        ({"USE_DEFORMABLE": True}, {"DEFORM_CONV": "all", "DEFORM_MODULATED": False}),
        ({"LAST_DEFORMABLE": True, "TYPE_DEFORMABLE": "DCNv2"}, {"DEFORM_CONV": "none", "DEFORM_MODULATED": False}),
        ({"USE_DEFORMABLE": True, "LAST_DEFORMABLE": True}, {"DEFORM_CONV": "last", "DEFORM_MODULATED": False}),
        ({"USE_DEFORMABLE": True, "TYPE_DEFORMABLE": "DCNv2"}, {"DEFORM_CONV": "all", "DEFORM_MODULATED": True}),
        ({"USE_DEFORMABLE": False, "TYPE_DEFORMABLE": "DCNv9"}, {"DEFORM_CONV": "none"}),
        ({"CENTER_SAMPLE": False, "POS_RADIUS": 2.5}, {"CENTER_SAMPLING": False, "CENTER_SAMPLING_RADIUS": 2.5}),
        ({"LOC_LOSS_TYPE": "iou"}, {"BOX_LOSS_TYPE": "iou"}),
        ({"LOC_LOSS_TYPE": "linear_iou"}, {"BOX_LOSS_TYPE": "linear_iou"}),
        ({"USE_GCN_IN_MASK": True}, {"MASK_PREDICTOR": "large_kernel", "LARGE_KERNEL_SIZE": 9}),
        ({"USE_GCN_IN_MASK": True, "GCN_KERNEL_SIZE": 7}, {"MASK_PREDICTOR": "large_kernel", "LARGE_KERNEL_SIZE": 7}),
        ({"LOSS_ON_MASK": True}, {"MASK_REPRESENTATION": "implicit"}),
        ({"LOSS_ON_MASK": True, "MASK_LOSS_TYPE": "l1"}, {"MASK_REPRESENTATION": "implicit"}),
        ({"PATH_COMPONENTS": "x.npz", "FLAG_PARAMETERS": True}, {"COMPONENTS": ""}),
    ],
)
def test_their_keys_become_ours(tmp_path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    changed = config_of(translated(tmp_path, **theirs)).MODEL.MEINST
    default = config_of(translated(tmp_path)).MODEL.MEINST
    assert {key: changed[key] for key in ours} == ours
    assert {key for key in changed if changed[key] != default[key]} <= set(ours)


@pytest.mark.parametrize(("cap", "ours"), [(100, 100), (37, 37), (0, 0), (-1, 0)])
def test_their_cap_counts_and_not_detectron2s(tmp_path: Path, cap: int, ours: int) -> None:
    overrides = {"MODEL.MEInst.POST_NMS_TOPK_TEST": cap, "TEST.DETECTIONS_PER_IMAGE": 7}
    path = write_published_config(tmp_path, "Base-MEInst.yaml", overrides)
    translation = translate_config(read_plain_yaml(path))
    assert ours == config_of(translation).TEST.DETECTIONS_PER_IMAGE
    assert "dropped TEST.DETECTIONS_PER_IMAGE: MODEL.MEInst.POST_NMS_TOPK_TEST is the limit" in translation.notes


@pytest.mark.parametrize(
    ("theirs", "note"),
    [
        ({"INFERENCE_TH_TRAIN": 0.1}, "INFERENCE_TH_TRAIN has no effect"),
        ({"PRE_NMS_TOPK_TRAIN": 5}, "PRE_NMS_TOPK_TRAIN has no effect"),
        ({"POST_NMS_TOPK_TRAIN": 5}, "POST_NMS_TOPK_TRAIN has no effect"),
        ({"NORM": "SyncBN"}, "NORM 'SyncBN' means no normalisation"),
        ({"LAST_DEFORMABLE": True}, "LAST_DEFORMABLE has no effect: MODEL.MEInst.USE_DEFORMABLE is False"),
        ({"TOP_LEVELS": 1}, "TOP_LEVELS has no effect: their code reads MODEL.FCOS.TOP_LEVELS"),
        ({"MASK_ON": False}, "MODEL.MEInst.MASK_ON has no effect"),
        ({"LOSS_ON_MASK": True, "MASK_LOSS_TYPE": "l1"}, "MASK_LOSS_TYPE has no effect"),
        ({"WHITEN": False}, "WHITEN False stops their code"),
    ],
)
def test_what_does_not_mean_what_it_seems_is_said(tmp_path: Path, theirs: dict[str, Any], note: str) -> None:
    notes = translated(tmp_path, **theirs).notes
    assert sum(note in line for line in notes) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL.MEInst.NUM_CLASES": 3}, "MODEL.MEInst.NUM_CLASES is unknown: did you mean MODEL.MEInst.NUM_CLASSES"),
        ({"MODEL.MEInst.ZZZ.YYY": 3}, "MODEL.MEInst.ZZZ.YYY is unknown"),
        ({"MODEL.MEInst": 3}, "MODEL.MEInst = 3 must hold keys"),
        ({"MODEL.MEInst.NMS_TH": "high"}, "MODEL.MEInst.NMS_TH = 'high' must be of type float, like 0.6"),
        ({"MODEL.MEInst.AGNOSTIC": False}, "AGNOSTIC False was never implemented"),
        ({"MODEL.MEInst.MASK_LOSS_TYPE": "l1"}, "MASK_LOSS_TYPE 'l1' was never implemented"),
        (
            {"MODEL.MEInst.USE_DEFORMABLE": True, "MODEL.MEInst.TYPE_DEFORMABLE": "v2"},
            "TYPE_DEFORMABLE 'v2' is none of",
        ),
        ({"MODEL.MEInst.LOC_LOSS_TYPE": "l1"}, "LOC_LOSS_TYPE 'l1' is none of giou, iou, linear_iou"),
        ({"MODEL.MEInst.FPN_STRIDES": [8, 16]}, "FPN_STRIDES has 2 values for the 5 feature maps"),
        ({"MODEL.BACKBONE.NAME": "build_fcos_dla_fpn_backbone"}, "MODEL.BACKBONE.NAME 'build_fcos_dla_fpn_backbone'"),
        ({"MODEL.PROPOSAL_GENERATOR.NAME": "FCOS"}, "NAME 'FCOS' cannot be imported: MEInst is published with MEInst"),
        ({"MODEL.META_ARCHITECTURE": "BlendMask"}, "META_ARCHITECTURE 'BlendMask' cannot be imported"),
        ({"MODEL.BACKBONE.ANTI_ALIAS": True}, "ANTI_ALIAS True has no counterpart here: only False"),
        ({"MODEL.RESNETS.DEFORM_INTERVAL": 3}, "DEFORM_INTERVAL 3 has no counterpart here: only 1"),
        ({"VERSION": 1}, "VERSION 1 has no counterpart here"),
        ({"MODEL.MEINST.DIM_MASK": 60}, "the config has MODEL.MEINST, which is this project's"),
        ({"SOLVER.MAX_ITER": "many"}, "SOLVER.MAX_ITER = 'many' does not fit Detectron2's config"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    path = write_published_config(tmp_path, "Base-MEInst.yaml", overrides)
    with pytest.raises(ValueError) as error:
        translate_config(read_plain_yaml(path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_dumped_config_loses_what_other_models_read(tmp_path: Path) -> None:
    """A full config has every node of Detectron2 and of AdelaiDet."""
    from detectron2.config import CfgNode, get_cfg

    cfg = get_cfg()
    cfg.merge_from_other_cfg(CfgNode(read_plain_yaml(write_published_config(tmp_path, "Base-MEInst.yaml"))))
    cfg.MODEL.MEInst = CfgNode(DEFAULTS | {"DIM_MASK": 40})
    cfg.MODEL.FCOS = CfgNode({"NUM_CLASSES": 80, "TOP_LEVELS": 1, "YIELD_PROPOSAL": False})
    cfg.MODEL.BASIS_MODULE = CfgNode({"NAME": "ProtoNet", "LOSS_ON": False})
    cfg.MODEL.BACKBONE.ANTI_ALIAS = False
    cfg.MODEL.RESNETS.DEFORM_INTERVAL = 1
    cfg.INPUT.HFLIP_TRAIN = False
    cfg.INPUT.IS_ROTATE = False
    cfg.INPUT.CROP.CROP_INSTANCE = True
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOMETHING = CfgNode({"ELSE": 1})
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.MIN_SIZE_TEST = 512
    (tmp_path / "full.yaml").write_text(cfg.dump())
    translation = translate_config(read_plain_yaml(tmp_path / "full.yaml"))

    ours = config_of(translation)
    assert (ours.MODEL.MEINST.DIM_MASK, ours.MODEL.MEINST.TOP_LEVELS) == (40, 1)
    assert (ours.INPUT.RANDOM_FLIP, ours.INPUT.MIN_SIZE_TEST, ours.INPUT.FORMAT) == ("none", 512, "BGR")
    dropped = {line.removeprefix("dropped ").split(": ")[0] for line in translation.notes if line.startswith("dropped")}
    assert dropped >= {
        *("MODEL.FCOS but for TOP_LEVELS", "MODEL.BASIS_MODULE", "MODEL.ROI_HEADS", "MODEL.RETINANET"),
        *("MODEL.PROPOSAL_GENERATOR but for NAME", "MODEL.BACKBONE.ANTI_ALIAS", "MODEL.RESNETS.DEFORM_INTERVAL"),
        *("INPUT.IS_ROTATE", "INPUT.RANDOM_FLIP", "INPUT.CROP.CROP_INSTANCE", "SOLVER.AMP.ENABLED", "SOMETHING"),
    }
    kept = {"MODEL.RESNETS", "MODEL.FPN", "MODEL.PIXEL_STD", "SOLVER", "INPUT", "DATASETS", "TEST", "DATALOADER"}
    assert not kept & dropped
    assert set(translation.keys["MODEL"]) == {
        *("BACKBONE", "DEVICE", "FPN", "MASK_ON", "MEINST", "META_ARCHITECTURE", "PIXEL_MEAN", "PIXEL_STD"),
        *("PROPOSAL_GENERATOR", "RESNETS", "WEIGHTS"),
    }


def test_a_file_that_stands_alone_is_taken_for_an_meinst(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("MODEL: {MEInst: {DIM_MASK: 20}, MASK_ON: false}")
    translation = translate_config(read_plain_yaml(tmp_path / "short.yaml"))
    cfg = config_of(translation)
    assert cfg.MODEL.RESNETS.OUT_FEATURES == ["res3", "res4", "res5"] == cfg.MODEL.FPN.IN_FEATURES
    assert cfg.MODEL.MASK_ON and cfg.MODEL.MEINST.DIM_MASK == 20
    assert sum("is not given: taken from their base config" in line for line in translation.notes) == 5
    assert "MODEL.MASK_ON False has no effect: their model always has the mask branch" in translation.notes


LAYOUTS: dict[str, dict[str, Any]] = {
    "none": {},
    "dcnv1": {"USE_DEFORMABLE": True, "LAST_DEFORMABLE": True},
    "dcnv2": {"USE_DEFORMABLE": True, "LAST_DEFORMABLE": True, "TYPE_DEFORMABLE": "DCNv2"},
    "dcnv2_all": {"USE_DEFORMABLE": True, "TYPE_DEFORMABLE": "DCNv2"},
    "dim20": {"DIM_MASK": 20},
    "gcn": {"USE_GCN_IN_MASK": True},
    "share1_nonorm_noscale": {"NUM_SHARE_CONVS": 1, "NORM": "none", "USE_SCALE": False},
}


def test_every_key_list_has_its_config() -> None:
    assert set(LAYOUTS) == {path.stem for path in (FOLDER / "keys").glob("*.tsv")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_tensors_of_every_layout_load_into_the_imported_config(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row.split("\t") for row in (FOLDER / f"keys/{layout}.tsv").read_text().splitlines()]
    # One stored number per tensor; a model without memory takes them all.
    torch.save({key: torch.ones(1).expand(yaml.safe_load(shape)) for key, shape in rows}, tmp_path / "theirs.pth")
    model = build(config_of(translated(tmp_path, **LAYOUTS[layout])), "meta")
    with caplog.at_level("INFO"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*which is a no-op.*")
        MEInstCheckpointer(model).load(str(tmp_path / "theirs.pth"))
    assert "Loading from" in caplog.text
    assert "not found" not in caplog.text and "not used" not in caplog.text and "Skip loading" not in caplog.text
    state = {key: torch.empty(yaml.safe_load(shape), device="meta") for key, shape in rows}
    settle_names(state)
    require_same_tensors(model, state, layout)
