"""Half precision computes what float32 computes, within its rounding; losses and scores stay float32."""

from typing import Any

import pytest
import torch

from meinst_d2.config import channels_last_of
from tests.models import image_with, tiny_cfg, tiny_model

BATCH = [image_with([[10, 8, 40, 44], [50, 20, 90, 60]], classes=[3, 5]), image_with([])]
TOLERANCE = {"bfloat16": 0.03, "float16": 0.004}  # relative, of the losses of a small model


def pair(*overrides: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    fixed = ("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01), "MODEL.MEINST.PRIOR_PROB", 0.3)
    return tiny_model(*fixed), tiny_model(*fixed, *overrides)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_losses_are_float32_and_close(precision: str) -> None:
    full, half = (model(BATCH) for model in pair("MODEL.MEINST.PRECISION", precision))
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full[name].item(), rel=TOLERANCE[precision]), name
    assert any(half[name] != full[name] for name in full)


@pytest.mark.parametrize("precision", list(TOLERANCE))
def test_predictions_are_close(precision: str) -> None:
    models = pair("MODEL.MEINST.PRECISION", precision)
    with torch.no_grad():
        full, half = (model.eval()(BATCH)[0]["instances"] for model in models)
    assert half.scores.dtype == half.pred_boxes.tensor.dtype == torch.float32
    assert abs(len(half) - len(full)) <= 0.1 * len(full)
    torch.testing.assert_close(half.scores[:10], full.scores[:10], rtol=0, atol=0.02)


def test_detectron2s_switch_means_float16() -> None:
    assert tiny_model("SOLVER.AMP.ENABLED", True).precision == "float16"
    assert tiny_model("SOLVER.AMP.ENABLED", True, "MODEL.MEINST.PRECISION", "bfloat16").precision == "bfloat16"


def test_channels_last_changes_the_layout_and_nothing_else() -> None:
    (_, plain), (_, last) = (pair("MODEL.MEINST.CHANNELS_LAST", choice) for choice in ("never", "auto"))
    assert plain.preprocess_image(BATCH).tensor.is_contiguous()
    assert last.proposal_generator.head.cls_logits.weight.is_contiguous(memory_format=torch.channels_last)
    assert last.preprocess_image(BATCH).tensor.is_contiguous(memory_format=torch.channels_last)
    expected, found = plain(BATCH), last(BATCH)
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-5)
    with torch.no_grad():
        before, after = (model.eval()(BATCH)[0]["instances"] for model in (plain, last))
    torch.testing.assert_close(after.pred_boxes.tensor, before.pred_boxes.tensor, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "choice, device, last",
    [("auto", "cpu", True), ("auto", "cuda", False), ("always", "cuda", True), ("never", "cpu", False)],
)
def test_where_channels_come_last(choice: str, device: str, last: bool) -> None:
    cfg = tiny_cfg("MODEL.MEINST.CHANNELS_LAST", choice)
    cfg.MODEL.DEVICE = device
    assert channels_last_of(cfg) is last
