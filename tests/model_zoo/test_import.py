"""The importer on a small model, and their configs, key by key: expected values are written out, not computed."""

import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.config_file import read_plain_yaml
from meinst_d2.data.shapes import ShapesConfig, generate
from meinst_d2.encoding import load_components
from meinst_d2.model_zoo import load_trained
from meinst_d2.model_zoo.adelaidet import import_checkpoint
from meinst_d2.model_zoo.adelaidet.config import DEFAULTS, TranslatedConfig, translate_config
from meinst_d2.model_zoo.trained import build, require_same_tensors
from meinst_d2.model_zoo.zoo import config_from_string
from meinst_d2.modeling.proposal_generator import settle_names
from tests.models import build_from, load_cfg, under_their_names, write_components
from tests.parity_cases import FOLDER
from tests.published_configs import write_published_config

SMALL: dict[str, Any] = {
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.MEInst.NUM_CLASSES": 6,
    "MODEL.MEInst.DIM_MASK": 8,
    "MODEL.MEInst.PRIOR_PROB": 0.3,
    **{f"MODEL.MEInst.NUM_{tower}_CONVS": 1 for tower in ("CLS", "BOX", "MASK")},
    "DATASETS.TRAIN": ["shapes_train"],
    "DATASETS.TEST": ["shapes_val"],
    "INPUT.MIN_SIZE_TEST": 160,  # less, and p7 would be too small for 32 groups of 1 channel
    "OUTPUT_DIR": "evaluated",
}
PREFIX = "proposal_generator."
ENCODING = PREFIX + "mask_encoding."


def write_config(folder: Path, overrides: Mapping[str, Any] = {}) -> Path:
    return write_published_config(folder, "MEInst_R_50_1x.yaml", SMALL | dict(overrides))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Under the published names."""
    folder = tmp_path_factory.mktemp("small")
    translation = translate_config(read_plain_yaml(write_config(folder)))
    (folder / "ours.yaml").write_text(yaml.safe_dump(translation.keys))
    components = write_components(folder / "c.npz")
    torch.manual_seed(0)
    model = build_from(folder / "ours.yaml", "MODEL.MEINST.COMPONENTS", str(components))
    return under_their_names(model.state_dict())


def without_components(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith(ENCODING)}


def save(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "theirs.pth")
    return folder / "theirs.pth"


@pytest.mark.parametrize("form", ["bare", "whole", "distributed", "with pixel statistics"])
def test_config_and_weights_are_written(tmp_path: Path, weights: dict[str, torch.Tensor], form: str) -> None:
    theirs = {
        "bare": weights,
        "whole": {"model": weights, "optimizer": {"state": {}}, "iteration": 89999},
        "distributed": {"model": {f"module.{name}": value for name, value in weights.items()}},
        "with pixel statistics": {**weights, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)},
    }[form]
    import_checkpoint(write_config(tmp_path), save(tmp_path, theirs), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.yaml", "model.pth"]
    content = torch.load(tmp_path / "out/model.pth", weights_only=True)
    assert content["meinst"]["class_names"] == ["ring", "star", "crescent", "bar", "cut", "blob"]
    model = build_from(tmp_path / "out/config.yaml", "MODEL.WEIGHTS", str(tmp_path / "out/model.pth"))
    state = model.state_dict()
    assert set(content["model"]) == set(state)
    for ours, theirs_name in (
        ("head.centerness.weight", "MEInst_head.ctrness.weight"),
        ("mask_encoder.means", "mask_encoding.means"),
        ("head.mask_tower.0.conv.weight", "MEInst_head.mask_tower.0.conv.weight"),
    ):
        assert torch.equal(state[PREFIX + ours], weights[PREFIX + theirs_name])


def test_the_commands_import_and_evaluate(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    def run(*command: str) -> str:
        environment = os.environ | {"DETECTRON2_DATASETS": "data"}
        done = subprocess.run(
            [sys.executable, "-m", "meinst_d2.commands", *command],
            **{"cwd": tmp_path, "env": environment, "capture_output": True, "text": True},
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    write_config(tmp_path)
    save(tmp_path, weights)
    generate(tmp_path / "data/shapes", {"train": 0, "val": 2}, ShapesConfig(height=96, width=96, max_side=60))
    files = ("--config", "theirs.yaml", "--weights", "theirs.pth", "--output", "ours")
    printed = run("import", *files)
    assert "dropped" not in printed and "wrote ours/config.yaml and ours/model.pth" in printed
    files = ("--config-file", "ours/config.yaml", "--eval-only", "MODEL.WEIGHTS", "ours/model.pth")
    printed = run("train", *files)
    assert "not found in the checkpoint" not in printed and "not used by the model" not in printed
    assert "Task: segm" in printed
    assert (tmp_path / "evaluated/inference/coco_instances_results.json").stat().st_size > 1000


def test_all_files_load_the_same(
    tmp_path: Path, weights: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    import_checkpoint(write_config(tmp_path), save(tmp_path, weights), tmp_path, safetensors=True)
    states = [
        build_from(tmp_path / "config.yaml", "MODEL.WEIGHTS", str(tmp_path / name)).state_dict()
        for name in ("theirs.pth", "model.pth", "model.safetensors")
    ]
    assert all(torch.equal(value, state[name]) for state in states[1:] for name, value in states[0].items())
    assert "not found" not in caplog.text and "not used" not in caplog.text and "Skip" not in caplog.text
    for name in ("model.pth", "model.safetensors"):  # which say what they are
        trained = load_trained(weights=str(tmp_path / name), device="cpu")
        assert trained.class_names == ["ring", "star", "crescent", "bar", "cut", "blob"]
        assert all(torch.equal(value, states[0][key]) for key, value in trained.model.state_dict().items())


def test_components_of_a_file_fill_weights_that_lack_them(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    config = write_config(tmp_path)
    file = write_components(tmp_path / "c.npz")
    expected = load_components(file).basis
    zeros = {name: torch.zeros_like(value) if ENCODING in name else value for name, value in weights.items()}
    for incomplete in (zeros, without_components(weights)):
        path = save(tmp_path, incomplete)
        with pytest.raises(ValueError, match="theirs.pth carries no mask components .*: add --components FILE"):
            import_checkpoint(config, path, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        import_checkpoint(config, path, tmp_path / "filled", components=str(file))
        state = torch.load(tmp_path / "filled/model.pth", weights_only=True)["model"]
        np.testing.assert_array_equal(state[PREFIX + "mask_encoder.components"], expected.components)
        np.testing.assert_array_equal(state[PREFIX + "mask_encoder.explained_variances"], expected.explained_variance)


def test_components_that_do_not_belong_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    config, path = write_config(tmp_path), save(tmp_path, without_components(weights))
    for kwargs, message in (
        ({"dim": 9}, "have D = 9, the config needs 8"),
        ({"mask_size": 14}, "have S = 14, the config needs 28"),
        ({"sigmoid": False}, "have sigmoid = False, the config needs True"),
    ):
        with pytest.raises(ValueError, match=message):
            import_checkpoint(
                config, path, tmp_path / "out", components=str(write_components(tmp_path / "c", **kwargs))
            )
    good = write_components(tmp_path / "c.npz")
    import_checkpoint(config, save(tmp_path, weights), tmp_path / "same", components=str(good))
    others = {name: value + 1 if name == ENCODING + "means" else value for name, value in weights.items()}
    with pytest.raises(ValueError, match="carries other components than .*c.npz: leave out --components"):
        import_checkpoint(config, save(tmp_path, others), tmp_path / "out", components=str(good))
    with pytest.raises(FileNotFoundError, match="no components at nowhere.npz"):
        import_checkpoint(config, path, tmp_path / "out", components="nowhere.npz")
    assert not (tmp_path / "out").exists()


def test_tensors_that_do_not_belong_are_listed(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    wrong = dict(weights)
    del wrong[PREFIX + "MEInst_head.ctrness.bias"]
    wrong["head.extra"] = torch.zeros(1)
    wrong["backbone.fpn_lateral3.weight"] = torch.zeros(32, 7, 1, 1)
    with pytest.raises(ValueError) as error:
        import_checkpoint(write_config(tmp_path), save(tmp_path, wrong), tmp_path / "out")
    assert str(error.value).splitlines()[1:] == [
        "  missing proposal_generator.head.centerness.bias",
        "  unexpected head.extra",
        "  backbone.fpn_lateral3.weight has shape (32, 7, 1, 1) instead of (32, 128, 1, 1)",
    ]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"MODEL.MEInst.FPN_STRIDES": [4, 8, 16, 32, 64]}, r"FPN_STRIDES \[4, 8, 16, 32, 64\] has no counterpart"),
        ({"MODEL.FCOS.TOP_LEVELS": 1}, "asks for p7, the backbone"),
        ({"MODEL.RESNETS.DEPTH": 19}, "the config cannot be built: KeyError 19"),
        ({"MODEL.MEInst.DIM_MASK": 9}, r"mask_encoder.components has shape \(8, 784\) instead of \(9, 784\)"),
    ],
)
def test_configs_that_do_not_belong_to_the_weights(
    tmp_path: Path, weights: dict[str, torch.Tensor], overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_checkpoint(write_config(tmp_path, overrides), save(tmp_path, weights), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk(tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, *_: Any, **__: Any) -> None:
        raise OSError("disk full")

    config, path = write_config(tmp_path), save(tmp_path, weights)
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        import_checkpoint(config, path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_large_backbone_is_detectron2s(tmp_path: Path) -> None:
    """X-101-32x8d as Detectron2's own configs have it; the imported config keeps every key of it."""
    overrides = {
        "MODEL.RESNETS.DEPTH": 101,
        "MODEL.RESNETS.NUM_GROUPS": 32,
        "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.PIXEL_STD": [57.375, 57.12, 58.395],
    }
    path = write_published_config(tmp_path, "MEInst_R_50_1x.yaml", overrides)
    cfg = config_from_string(yaml.safe_dump(translate_config(read_plain_yaml(path)).keys))
    resnets = cfg.MODEL.RESNETS
    assert (resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1) == (101, 32, 8, False)
    assert cfg.MODEL.PIXEL_STD == [57.375, 57.12, 58.395]


def translated(folder: Path, **meinst: Any) -> TranslatedConfig:
    overrides = {f"MODEL.MEInst.{key}": value for key, value in meinst.items()}
    return translate_config(read_plain_yaml(write_published_config(folder, "Base-MEInst.yaml", overrides)))


def config_of(translation: TranslatedConfig) -> Any:
    return config_from_string(yaml.safe_dump(translation.keys))


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
    ours = dict(cfg.MODEL.MEINST)
    assert not ours.pop("REFINE").ENABLED
    assert ours == {**yaml.safe_load(THEIR_DEFAULTS), "SIGMOID_CLAMP": (0.01, 0.05)}
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


BARE = {"NUM_SHARE_CONVS": 1, "NORM": "none", "USE_SCALE": False}
LAST = {"USE_DEFORMABLE": True, "LAST_DEFORMABLE": True}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # keys of their config, and of ours
    "none": ({}, {}),
    "dcnv1": (LAST, {"DEFORM_CONV": "last"}),
    "dcnv2": (LAST | {"TYPE_DEFORMABLE": "DCNv2"}, {"DEFORM_CONV": "last", "DEFORM_MODULATED": True}),
    "dcnv2_all": (
        {"USE_DEFORMABLE": True, "TYPE_DEFORMABLE": "DCNv2"},
        {"DEFORM_CONV": "all", "DEFORM_MODULATED": True},
    ),
    "dim20": ({"DIM_MASK": 20}, {"DIM_MASK": 20}),
    "gcn": ({"USE_GCN_IN_MASK": True}, {"MASK_PREDICTOR": "large_kernel"}),
    "share1_nonorm_noscale": (BARE, BARE),
}


def test_every_key_list_has_its_config() -> None:
    assert set(LAYOUTS) == {path.stem for path in (FOLDER / "keys").glob("*.tsv")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_tensors_of_every_layout_load_into_the_imported_config_and_into_ours(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row.split("\t") for row in (FOLDER / f"keys/{layout}.tsv").read_text().splitlines()]
    # One stored number per tensor; a model without memory takes them all.
    torch.save({key: torch.ones(1).expand(yaml.safe_load(shape)) for key, shape in rows}, tmp_path / "theirs.pth")
    theirs, ours = LAYOUTS[layout]
    overrides = [x for key, value in ours.items() for x in (f"MODEL.MEINST.{key}", value)]
    for cfg in (load_cfg("MEInst_R_50_1x_none.yaml", *overrides), config_of(translated(tmp_path, **theirs))):
        model = build(cfg, "meta")
        caplog.clear()
        with caplog.at_level("INFO"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*which is a no-op.*")
            MEInstCheckpointer(model).load(str(tmp_path / "theirs.pth"))
        assert "Loading from" in caplog.text
        assert "not found" not in caplog.text and "not used" not in caplog.text and "Skip loading" not in caplog.text
    state = {key: torch.empty(yaml.safe_load(shape), device="meta") for key, shape in rows}
    settle_names(state)
    require_same_tensors(model, state, layout)
