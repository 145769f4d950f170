"""Backbones of timm: their maps are timm's own, they learn, freeze and export; weights of a file are all used."""

import argparse
import builtins
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model

from meinst_d2.commands.train import load_config
from meinst_d2.engine import Trainer
from meinst_d2.modeling.timm_backbone import NAME, PlainPyramid, TimmBackbone, require_timm
from tests.conftest import ROOT
from tests.models import fit_to_blobs, image_with, tiny_cfg

STRIDES = {"p3": 8, "p4": 16, "p5": 32, "p6": 64}
LITE0 = "tf_efficientnet_lite0"


def timm_cfg(name: str, *overrides: Any) -> CfgNode:
    backbone = (
        "MODEL.BACKBONE.NAME",
        NAME,
        "MODEL.TIMM.NAME",
        name,
        "MODEL.TIMM.PRETRAINED",
        False,
    )
    levels = ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.MEINST.IN_FEATURES", list(STRIDES))
    sizes = ("MODEL.MEINST.TOP_LEVELS", 1, "MODEL.MEINST.SIZES_OF_INTEREST", [32, 64, 128], "MODEL.WEIGHTS", "")
    return tiny_cfg(*backbone, *levels, *sizes, *overrides)


@pytest.mark.parametrize("name", [LITE0, "convnext_tiny", "swin_tiny_patch4_window7_224", "vit_small_patch16_dinov3"])
def test_a_model_of_timm_learns_and_can_be_exported(name: str) -> None:
    torch.manual_seed(0)
    cfg = timm_cfg(name, "MODEL.BACKBONE.FREEZE_AT", 2, "MODEL.TIMM.LR_DECAY", 0.5, "SOLVER.OPTIMIZER", "AdamW")
    model = build_model(cfg)
    fit_to_blobs(model.proposal_generator.mask_encoder)
    shapes = model.backbone.output_shape()
    assert {level: shape.stride for level, shape in shapes.items()} == STRIDES
    bottom_up = model.backbone.net if isinstance(model.backbone, PlainPyramid) else model.backbone.bottom_up
    x = torch.rand(1, 3, 64, 96)
    maps = [(64 / y.shape[2], 96 / y.shape[3]) for y in bottom_up.eval().net(x)]
    assert maps == [(shape.stride, shape.stride) for shape in bottom_up.output_shape().values()]

    optimizer = Trainer.build_optimizer(cfg, model)
    rates = {id(p): group["lr"] / cfg.SOLVER.BASE_LR for group in optimizer.param_groups for p in group["params"]}
    frozen = {n for n, p in bottom_up.named_parameters() if not p.requires_grad}
    learned = [rates[id(p)] for n, p in bottom_up.named_parameters() if n not in frozen]
    assert frozen and max(learned) == 0.5 and min(learned) < 0.1  # the last layer, and one far below
    assert {rates[id(p)] for p in model.proposal_generator.head.parameters()} == {1}

    before = {n: p.clone() for n, p in model.named_parameters()}
    losses = model.train()(
        [image_with([[8, 8, 40, 50], [30, 20, 80, 60]], height=70, width=90)]
    )  # of no multiple of the patches
    sum(losses.values()).backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert any("bottom_up" in n or "backbone.net" in n for n in moved)
    assert not any(n.endswith(tuple(frozen)) for n in moved if n.startswith("backbone"))

    program = torch.export.export(model.backbone.eval(), (x,))
    for level, y in program.module()(x).items():
        torch.testing.assert_close(y, model.backbone(x)[level], rtol=1e-3, atol=1e-4)


def test_refinement_looks_at_a_finer_map_of_timm() -> None:
    refined = ("MODEL.MEINST.REFINE.ENABLED", True, "MODEL.MEINST.REFINE.DETAIL_FEATURE", "res2")
    shapes = build_backbone(timm_cfg(LITE0, *refined)).output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {**STRIDES, "res2": 4}
    with pytest.raises(ValueError, match="DETAIL_FEATURE = 'res2', the backbone build_timm_fpn_backbone gives p3"):
        build_model(timm_cfg("vit_small_patch16_dinov3", *refined))


def test_weights_of_a_file_are_all_used(tmp_path: Path) -> None:
    theirs = timm.create_model("test_efficientnet", num_classes=5).eval()
    with torch.no_grad():
        for norm in (m for m in theirs.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.uniform_(-1, 1)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = TimmBackbone("test_efficientnet", checkpoint=str(tmp_path / "theirs.pth")).train()
    x = torch.rand(2, 3, 64, 64)
    expected = theirs.forward_intermediates(x, indices=[2, 3, 4], intermediates_only=True)
    for y, e in zip(ours(x).values(), expected, strict=True):  # in training, too: the statistics are kept
        torch.testing.assert_close(y, e)
    kept = {name: value for name, value in theirs.state_dict().items() if "blocks.2" not in name}
    torch.save(kept, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"cut.pth lacks \d+ tensors of test_efficientnet, blocks.2"):
        TimmBackbone("test_efficientnet", checkpoint=str(tmp_path / "cut.pth"))


def test_weights_are_loaded_only_where_training_starts(tmp_path: Path) -> None:
    gone = ("MODEL.TIMM.CHECKPOINT", str(tmp_path / "gone.pth"))
    build_backbone(timm_cfg("test_efficientnet", *gone, "MODEL.WEIGHTS", "model.pth"))
    with pytest.raises(FileNotFoundError):
        build_backbone(timm_cfg("test_efficientnet", *gone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "tf_efficientnet_lite9"}, "is no model of timm: did you mean"),
        (
            {"name": LITE0, "out_features": ["res3", "res6"]},
            "gives no res6: MODEL.FPN.IN_FEATURES can be of res1, res2",
        ),
    ],
)
def test_what_timm_does_not_have(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**options)


def test_without_timm_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    importing = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "timm":
            raise ModuleNotFoundError(name)
        return importing(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs timm, which is not installed: pip install 'meinst_d2\[timm\]'"
    ):
        require_timm()


def test_pixel_statistics_are_timms_unless_set() -> None:
    opts = ["MODEL.BACKBONE.NAME", NAME, "MODEL.TIMM.NAME", LITE0]
    args = argparse.Namespace(config_file=str(ROOT / "configs/Base-MEInst.yaml"), opts=opts)
    cfg = load_config(args)
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5] * 3
    args.opts = [*opts, "MODEL.PIXEL_STD", "[60.0, 60.0, 60.0]"]
    cfg = load_config(args)
    assert cfg.INPUT.FORMAT == "BGR" and cfg.MODEL.PIXEL_STD == [60.0] * 3
