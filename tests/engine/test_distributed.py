"""Two processes with gloo against one process with the same global batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from meinst_d2.engine.step import TrainStep
from meinst_d2.engine.trainer import distribute
from tests.models import assert_same_gradients, image_with, tiny_model

BOXES = [[[10.0, 8.0, 50.0, 48.0]], [], [[4.0, 4.0, 90.0, 60.0], [50.0, 20.0, 70.0, 60.0]], [[0.0, 0.0, 30.0, 30.0]]]


def learn(rank: int, world_size: int, accumulation: int, folder: str) -> None:
    """One step on this process's share of four images of one size; the first process writes what came out."""
    torch.set_num_threads(1)
    if world_size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
        comm.create_local_process_group(world_size)
    model = distribute(tiny_model("MODEL.MEINST.SIGMOID_CLAMP", (0.01, 0.01)))
    share = len(BOXES) // world_size
    batch = [image_with(boxes) for boxes in BOXES][rank * share : (rank + 1) * share]
    step = TrainStep(model, [batch], torch.optim.SGD(model.parameters(), lr=0.0), seed=0, accumulation=accumulation)
    with EventStorage(0) as storage:
        step.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    gradients = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save({"losses": losses, "gradients": gradients}, f"{folder}/{world_size}_{accumulation}.pth")
    if world_size > 1:
        dist.destroy_process_group()


def assert_same_step(folder: Path, name: str) -> None:
    found, expected = (torch.load(folder / f"{step}.pth", weights_only=True) for step in (name, "1_1"))
    for loss, value in expected["losses"].items():
        assert found["losses"][loss] == pytest.approx(value, rel=1e-5), loss
    assert_same_gradients(found["gradients"], expected["gradients"])


def test_a_batch_in_parts_has_the_losses_and_gradients_of_the_whole(tmp_path: Path) -> None:
    for accumulation in (1, 2, 4):
        learn(0, 1, accumulation, str(tmp_path))
        assert_same_step(tmp_path, f"1_{accumulation}")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_processes_learn_what_one_learns_from_the_same_batch(tmp_path: Path, accumulation: int) -> None:
    learn(0, 1, 1, str(tmp_path))
    mp.spawn(learn, args=(2, accumulation, str(tmp_path)), nprocs=2)
    assert_same_step(tmp_path, f"2_{accumulation}")
