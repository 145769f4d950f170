"""A training step must not make the host wait for the device, nor talk to other processes more than once."""

import pytest
import torch
from detectron2.utils import comm

from tests.models import image_with, tiny_model

BOXES = [[4.0, 4.0, 40.0, 30.0], [50.0, 20.0, 90.0, 60.0]]


def test_losses_need_no_value_of_the_device() -> None:
    """Tensors of the meta device have no values: whatever needs one (item, nonzero, a comparison) raises."""
    model = tiny_model().train()
    encoder = model.proposal_generator.mask_encoder
    assert encoder.is_fitted  # asked once, before training
    model.to("meta")
    losses = model([image_with(BOXES), image_with([])])
    assert all(loss.device.type == "meta" for loss in losses.values())
    sum(losses.values()).backward()


def test_the_counts_of_all_processes_are_exchanged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01)).train()
    alone = model([image_with(BOXES)])
    calls = []

    def all_reduce(tensor: torch.Tensor) -> None:
        calls.append(tensor.shape)
        tensor.mul_(6)  # the other process has five times as many

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    shared = model([image_with(BOXES)])
    assert calls == [(2,)]
    for name in alone:
        assert shared[name].item() == pytest.approx(alone[name].item() / 3)
