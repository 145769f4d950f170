"""One iteration: forward, backward, look at the loss, update."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

from meinst_d2.engine.failed_batch import FailedBatch
from meinst_d2.engine.loop import TrainingLoop
from meinst_d2.engine.preemption import Termination


class TrainStep(SimpleTrainer, TrainingLoop):
    """Detectron2's SimpleTrainer with four differences.

    - The loss of every process is looked at on every process, before the weights are touched: a loss that is not finite
      stops all of them, and so does SIGTERM to one, after the update. The same exchange and the same read from the
      device serve the logged metrics.
    - The random numbers of an iteration follow from (seed, iteration, rank), so training can go on at any iteration.
    - A batch may be learned in parts, with the gradients of the whole.
    - The loss is scaled where the model computes in float16, on CPU and GPU.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        scale_loss: bool = False,
        accumulation: int = 1,
        failures: str = "",
    ) -> None:
        """
        Args:
            model: inputs -> losses by name.
            data_loader: iterable over lists of inputs.
            optimizer: of the model.
            seed: not negative.
            scale_loss: for models that compute in float16.
            accumulation: parts that a batch is learned in.
            failures: folder for batches whose loss is not finite; "" keeps none.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed = seed
        self.accumulation = accumulation
        self.failures = failures
        device = next(model.parameters()).device
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
        self.last_batch: Sequence[Mapping[str, Any]] = ()
        self.termination = Termination()

    def run_step(self) -> None:
        start = time.perf_counter()
        data = self.last_batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        torch.manual_seed(_iteration_seed(self.seed, self.iter, comm.get_rank()))
        self.optimizer.zero_grad()
        losses = self._learn(data) if self.accumulation == 1 else self._learn_in_parts(data)
        self.after_backward()
        self._check_and_log(losses, data_time, data)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _learn(self, data: Sequence[Mapping[str, Any]], share: float = 1.0) -> dict[str, Tensor]:
        """Forward and backward; returns the losses times ``share``."""
        losses = {name: loss * share for name, loss in self.model(data).items()}
        self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _learn_in_parts(self, data: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The losses and gradients of the whole batch, with the memory of a part."""
        detector = getattr(self.model, "module", self.model)
        parts = [data[first :: self.accumulation] for first in range(self.accumulation)]
        total: dict[str, Tensor] = {}
        with detector.as_parts_of(data, self.accumulation):
            for i, part in enumerate(parts):
                last = i == self.accumulation - 1
                exchange_later = nullcontext() if last or self.model is detector else self.model.no_sync()
                with exchange_later:
                    losses = self._learn(part, 1 / self.accumulation)
                total = {name: total.get(name, 0) + loss for name, loss in losses.items()}
        return total

    def _check_and_log(self, losses: Mapping[str, Tensor], data_time: float, data: Sequence[Mapping[str, Any]]) -> None:
        mine = torch.stack([loss.detach().float() for loss in losses.values()])
        others = mine.new_tensor([data_time, self.termination.requested])
        mine = torch.cat((mine, others))
        gathered = [mine]
        if comm.get_world_size() > 1:
            gathered = [torch.empty_like(mine) for _ in range(comm.get_world_size())]
            dist.all_gather(gathered, mine)
        table = torch.stack(gathered).tolist()  # (ranks, losses + 2): the one time the host waits for the device
        failed = [rank for rank, row in enumerate(table) if not all(map(math.isfinite, row[:-2]))]
        if failed:
            self._stop({rank: dict(zip(losses, table[rank], strict=False)) for rank in failed}, data)
        self.all_stop = any(row[-1] for row in table)
        if comm.is_main_process():
            means = dict(zip(losses, np.mean([row[:-2] for row in table], axis=0).tolist(), strict=True))
            storage = get_event_storage()
            storage.put_scalar("data_time", max(row[-2] for row in table))
            storage.put_scalar("total_loss", sum(means.values()))
            storage.put_scalars(**means)

    def _stop(self, failed: Mapping[int, Mapping[str, float]], data: Sequence[Mapping[str, Any]]) -> None:
        """Raise on every process once each that failed has kept its batch.

        Args:
            failed: the losses by process.
            data: what this process learned from.
        """
        rank = comm.get_rank()
        mine = None
        if rank in failed:
            model = getattr(self.model, "module", self.model)
            seed = _iteration_seed(self.seed, self.iter, rank)
            batch = FailedBatch(self.iter, rank, seed, failed[rank], data, model.state_dict())
            mine = (batch.image_ids, _keep(batch, self.failures))
        found = comm.all_gather(mine)
        sentences = []
        for number, losses in failed.items():
            images, where = found[number]
            values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
            process = f" on process {number}" if len(found) > 1 else ""
            sentences.append(f"{values}{process} with the images {', '.join(images)}{where}")
        raise FloatingPointError(
            f"the loss of iteration {self.iter} is not finite: {'; '.join(sentences)}. The weights are still those of "
            "the iteration before. Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or enable "
            "SOLVER.CLIP_GRADIENTS, then --resume"
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty in checkpoints of runs without loss scaling
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _keep(batch: FailedBatch, folder: str) -> str:
    """Save a batch; how the sentence about it goes on."""
    if not folder:
        return ""
    try:
        return f" (meinst replay {batch.save(folder)} shows it again)"
    except OSError as error:
        return f" (which could not be kept: {error})"


def _iteration_seed(seed: int, iteration: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, iteration, rank)).generate_state(1, np.uint64)[0] >> 1)
