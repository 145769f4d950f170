"""One iteration: forward, backward, look at the loss, update."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainStep(SimpleTrainer):
    """Detectron2's SimpleTrainer with three differences.

    - The loss of every process is looked at on every process, before the weights are touched: a loss that is not finite
      stops all of them. The same exchange and the same read from the device serve the logged metrics.
    - The random numbers of an iteration follow from (seed, iteration, rank), so training can go on at any iteration.
    - Automatic mixed precision also runs on the CPU.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: inputs -> losses by name.
            data_loader: iterable over lists of inputs.
            optimizer: of the model.
            seed: not negative.
            precision: of autocast, or None for none.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.precision = precision
        self.device = next(model.parameters()).device
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)

    def run_step(self) -> None:
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        torch.manual_seed(_iteration_seed(self.seed, self.iter, comm.get_rank()))
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
            losses = self.model(data)
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.after_backward()
        self._check_and_log(losses, data_time, data)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _check_and_log(self, losses: Mapping[str, Tensor], data_time: float, data: Sequence[Mapping[str, Any]]) -> None:
        mine = torch.stack([loss.detach().float() for loss in losses.values()])
        mine = torch.cat((mine, torch.full_like(mine[:1], data_time)))
        gathered = [mine]
        if comm.get_world_size() > 1:
            gathered = [torch.empty_like(mine) for _ in range(comm.get_world_size())]
            dist.all_gather(gathered, mine)
        table = torch.stack(gathered).tolist()  # (ranks, losses + 1): the one time the host waits for the device
        for rank, row in enumerate(table):
            if not all(math.isfinite(value) for value in row[:-1]):
                self._stop(dict(zip(losses, row, strict=False)), rank, data)
        if comm.is_main_process():
            means = dict(zip(losses, np.mean([row[:-1] for row in table], axis=0).tolist(), strict=True))
            storage = get_event_storage()
            storage.put_scalar("data_time", max(row[-1] for row in table))
            storage.put_scalar("total_loss", sum(means.values()))
            storage.put_scalars(**means)

    def _stop(self, losses: Mapping[str, float], rank: int, data: Sequence[Mapping[str, Any]]) -> None:
        values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
        images = ", ".join(str(x.get("image_id", x.get("file_name"))) for x in data)
        where = f"on process {rank}" if comm.get_world_size() > 1 else "here"
        raise FloatingPointError(
            f"the loss of iteration {self.iter} is not finite {where} ({values}); this process had the images "
            f"{images}. The weights are still those of the iteration before. Lower SOLVER.BASE_LR, lengthen "
            "SOLVER.WARMUP_ITERS or enable SOLVER.CLIP_GRADIENTS, then --resume"
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty in checkpoints of runs without loss scaling
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _iteration_seed(seed: int, iteration: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, iteration, rank)).generate_state(1, np.uint64)[0] >> 1)
