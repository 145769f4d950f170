import pytest
import torch

from meinst_d2.modeling.head import MEInstHead, TowerConfig

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
