import pytest
import torch
from torch import nn

from meinst_d2.modeling.head import MEInstHead, TowerConfig
from meinst_d2.modeling.layers import DeformConv, LargeKernelConv, Scale

LEVELS = [torch.randn(2, 32, 6, 8), torch.randn(2, 32, 3, 4)]


def head(**options: object) -> MEInstHead:
    return MEInstHead(**({"in_channels": 32, "num_levels": 2, "num_classes": 5, "mask_dim": 7} | options))


def test_shapes_of_every_level() -> None:
    output = head()(LEVELS)
    for level, (h, w) in enumerate([(6, 8), (3, 4)]):
        assert output.cls_logits[level].shape == (2, 5, h, w) and output.box_ltrb[level].shape == (2, 4, h, w)
        assert output.centerness[level].shape == (2, 1, h, w)
        assert output.mask_coeffs is not None and output.mask_coeffs[level].shape == (2, 7, h, w)
    assert output.level_shapes == [(6, 8), (3, 4)]


def test_an_untrained_head_predicts_the_prior() -> None:
    output = head(prior_prob=0.02)([torch.zeros_like(level) for level in LEVELS])
    torch.testing.assert_close(output.cls_logits[0].sigmoid(), torch.full((2, 5, 6, 8), 0.02))


def test_distances_are_never_negative_and_scaled_per_level() -> None:
    model = head(use_scale=True)
    torch.nn.init.normal_(model.bbox_pred.weight)
    before = model(LEVELS).box_ltrb
    assert before[0].min() == 0 and before[0].max() > 0
    with torch.no_grad():
        model.scales[1].scale.fill_(3)
    after = model(LEVELS).box_ltrb
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], 3 * before[1])


def test_without_a_mask_branch_there_is_none() -> None:
    model = head(mask_dim=None)
    assert model(LEVELS).mask_coeffs is None and not any("mask" in name for name in model.state_dict())
    model.reset_mask_predictor()


def test_shared_convolutions_come_before_every_tower() -> None:
    model = head(towers=TowerConfig(num_shared_convs=1, num_cls_convs=0, num_box_convs=0, num_mask_convs=0))
    with torch.no_grad():
        model.share_tower[1].weight.zero_()  # the norm: nothing passes
    output = model(LEVELS)
    assert output.cls_logits[0].std() < 1e-6 and output.mask_coeffs is not None and output.mask_coeffs[0].std() < 1e-6


def test_resetting_the_mask_predictor_touches_nothing_else() -> None:
    model = head()
    torch.nn.init.ones_(model.mask_pred.weight)
    others = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("mask_pred")}
    model.reset_mask_predictor()
    assert model.mask_pred.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in others.items())


def test_a_large_kernel_predicts_the_coefficients() -> None:
    model = head(towers=TowerConfig(num_mask_convs=0, large_kernel_size=5))
    output = model(LEVELS)
    assert output.mask_coeffs is not None and output.mask_coeffs[1].shape == (2, 7, 3, 4)
    torch.nn.init.ones_(model.mask_pred.conv_r2.conv.weight)
    model.reset_mask_predictor()
    assert model.mask_pred.conv_r2.conv.weight.std() < 0.02


def test_outputs_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        output = head()(LEVELS)
    assert output.cls_logits[0].dtype == output.box_ltrb[0].dtype == torch.float32


def test_scale_multiplies_and_learns() -> None:
    scale = Scale(2.0)
    scale(torch.ones(3)).sum().backward()
    assert scale(torch.ones(3)).tolist() == [2, 2, 2] and scale.scale.grad is not None and scale.scale.grad.item() == 3


def test_an_untrained_deformable_convolution_is_a_plain_one() -> None:
    torch.manual_seed(0)
    layer, x = DeformConv(8, 6), torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(layer(x), layer.conv(x), rtol=1e-4, atol=1e-5)


def test_offsets_move_the_taps() -> None:
    layer, x = DeformConv(1, 1), torch.randn(1, 1, 6, 8)
    with torch.no_grad():
        layer.offset.bias.copy_(torch.tensor([0.0, 1.0]).repeat(9))  # (dy, dx) of each tap: one pixel to the right
    shifted = torch.zeros_like(x)
    shifted[..., :-1] = x[..., 1:]
    torch.testing.assert_close(layer(x)[..., 1:-2], layer.conv(shifted)[..., 1:-2], rtol=1e-4, atol=1e-5)


def test_deformable_convolution_trains_its_offsets_under_autocast() -> None:
    layer = DeformConv(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(1, 4, 5, 5)).sum().backward()
    assert layer.offset.weight.grad is not None and layer.offset.weight.grad.abs().sum() > 0


def test_an_untrained_modulated_convolution_weighs_every_tap_one_half() -> None:
    layer, x = DeformConv(4, 3, modulated=True), torch.randn(1, 4, 5, 7)
    assert layer.offset.weight.shape == (27, 4, 3, 3)
    torch.testing.assert_close(layer(x), layer.conv(x) / 2, rtol=1e-4, atol=1e-5)


def test_the_last_third_of_the_predicted_channels_modulates() -> None:
    layer, x = DeformConv(1, 1, modulated=True), torch.randn(1, 1, 5, 7)
    with torch.no_grad():
        layer.offset.bias[18:] = -50.0
        layer.offset.bias[18 + 4] = 50.0  # only the tap in the middle is left
    torch.testing.assert_close(layer(x), x * layer.conv.weight[0, 0, 1, 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 4, 9])
def test_a_large_kernel_is_two_separable_convolutions(kernel_size: int) -> None:
    layer, k = LargeKernelConv(2, 3, kernel_size), kernel_size
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "conv_l1.conv.weight": (3, 2, k, 1),
        "conv_l2.conv.weight": (3, 3, 1, k),
        "conv_r1.conv.weight": (3, 2, 1, k),
        "conv_r2.conv.weight": (3, 3, k, 1),
    }
    x = torch.randn(1, 2, 12, 15)
    left, right = (k - 1) // 2, k - 1 - (k - 1) // 2
    weights = {name: p.double() for name, p in layer.named_parameters()}
    # The composition of the two passes of one side is one k x k convolution where no padding takes part.
    both = torch.einsum(
        "obj,bai->oaij", weights["conv_l2.conv.weight"][:, :, 0], weights["conv_l1.conv.weight"][..., 0]
    )
    both = both + torch.einsum(
        "obi,baj->oaij", weights["conv_r2.conv.weight"][..., 0], weights["conv_r1.conv.weight"][:, :, 0]
    )
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x.double(), (left, right, left, right)), both)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-4, atol=1e-6)


def test_all_or_the_last_convolution_of_a_tower_deforms() -> None:
    def deformable(**options: object) -> list[bool]:
        return [isinstance(layer, DeformConv) for layer in TowerConfig(**options).build(32, 3)][::3]

    assert deformable() == [False, False, False] and deformable(deform="last") == [False, False, True]
    assert deformable(deform="all", deform_modulated=True) == [True, True, True]
    assert TowerConfig(deform="all", deform_modulated=True).build(32, 1)[0].offset.out_channels == 27


def test_a_tower_is_conv_norm_relu_and_numbered_as_published() -> None:
    tower = TowerConfig(deform="last").build(64, 2)
    kinds = [nn.Conv2d, nn.GroupNorm, nn.ReLU, DeformConv, nn.GroupNorm, nn.ReLU]
    assert len(tower) == len(kinds) and all(map(isinstance, tower, kinds))
    assert set(tower.state_dict()) == {
        *(f"{i}.{name}" for i in (0, 1, 4) for name in ("weight", "bias")),
        *(f"3.{name}" for name in ("offset.weight", "offset.bias", "conv.weight")),
    }
    assert all(map(isinstance, TowerConfig(norm="none").build(10, 1), [nn.Conv2d, nn.ReLU]))
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(TowerConfig(norm="none").build(3, 0)(x), x)


def test_a_tower_starts_small() -> None:
    conv = TowerConfig().build(64, 1)[0]
    assert conv.weight.std().item() == pytest.approx(0.01, rel=0.05) and not conv.bias.any()


def test_norms_and_channels_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="'BN' is none of GN, none"):
        TowerConfig(norm="BN").build(64, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiples of 32, got 48"):
        TowerConfig().build(48, 1)
