"""Backbones of Detectron2's registry, and the levels that they lack."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_backbone, build_model
from torch import Tensor, nn

from meinst_d2.modeling.backbones import DetailFPN, ExtraLevels, complete_pyramid
from tests.models import image_with, tiny_cfg


class ThreeLevels(Backbone):
    """p3 to p5 of 64 channels, by pooling."""

    size_divisibility = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {f"p{i}": nn.functional.avg_pool2d(self.conv(x), 2**i) for i in (3, 4, 5)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {f"p{i}": ShapeSpec(channels=64, stride=2**i) for i in (3, 4, 5)}


@BACKBONE_REGISTRY.register()
def build_three_levels(cfg, input_shape):  # type: ignore[no-untyped-def]
    return ThreeLevels()


FIVE = (
    *("MODEL.MEINST.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"]),
    *("MODEL.MEINST.SIZES_OF_INTEREST", [8, 16, 24, 40]),
    *("MODEL.MEINST.TOP_LEVELS", 2),
    *("MODEL.FPN.OUT_CHANNELS", 64),
    *("MODEL.MEINST.ENCODER", "DCTEncoder"),
)


@pytest.mark.parametrize(
    "name", ["build_three_levels", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone"]
)
def test_a_backbone_with_p3_to_p5_trains_and_predicts(name: str) -> None:
    ours_need = () if name == "build_three_levels" else ("MODEL.RESNETS.RES2_OUT_CHANNELS", 64)
    model = build_model(
        tiny_cfg(
            *FIVE, *("MODEL.BACKBONE.NAME", name, "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.NORM", "BN"), *ours_need
        )
    )
    assert isinstance(model.backbone, ExtraLevels) == (name != "build_retinanet_resnet_fpn_backbone")
    losses = model([image_with([[10, 8, 40, 44], [4, 2, 90, 60]]), image_with([])])
    sum(losses.values()).backward()
    assert losses["loss_mask"] > 0
    top = model.backbone.top_block
    assert top.p6.weight.grad is not None and top.p6.weight.grad.any()
    with torch.no_grad():
        assert model.eval()([image_with([])])[0]["instances"].image_size == (64, 96)


def test_added_levels_halve_p5_again_and_again() -> None:
    backbone = complete_pyramid(ThreeLevels(), ["p3", "p4", "p5", "p6", "p7"], 2)
    shapes, features = backbone.output_shape(), backbone(torch.randn(1, 3, 64, 128))
    assert {name: shape.stride for name, shape in shapes.items()} == {f"p{i}": 2**i for i in range(3, 8)}
    assert features["p6"].shape == (1, 64, 1, 2) and features["p7"].shape == (1, 64, 1, 1)
    assert backbone.size_divisibility == 32 and backbone.padding_constraints == {}


def test_nothing_is_added_where_nothing_lacks_or_may_be_added() -> None:
    bare = ThreeLevels()
    assert complete_pyramid(bare, ["p3", "p4", "p5"], 2) is bare and complete_pyramid(bare, ["p3", "p6"], 0) is bare


def test_levels_that_nobody_makes_are_named() -> None:
    with pytest.raises(ValueError, match="asks for p6, p7, the backbone build_three_levels gives p3, p4, p5"):
        build_model(tiny_cfg(*FIVE, "MODEL.MEINST.TOP_LEVELS", 0, "MODEL.BACKBONE.NAME", "build_three_levels"))


@pytest.mark.parametrize("fuse_type", ["sum", "avg"])
def test_levels_are_fpns_where_a_finer_map_is_given_too(fuse_type: str) -> None:
    refined = ("MODEL.MEINST.REFINE.ENABLED", True, "MODEL.MEINST.REFINE.DETAIL_FEATURE", "res2")
    backbone = build_backbone(tiny_cfg(*FIVE, *refined, "MODEL.FPN.FUSE_TYPE", fuse_type)).eval()
    assert isinstance(backbone, DetailFPN)
    x = torch.randn(1, 3, 64, 96)
    features, expected = backbone(x), FPN.forward(backbone, x)
    torch.testing.assert_close(features.pop("res2"), backbone.bottom_up(x)["res2"])
    assert list(features) == list(expected) == ["p3", "p4", "p5", "p6", "p7"]
    torch.testing.assert_close(features, expected)
    assert backbone.output_shape()["res2"].stride == 4
