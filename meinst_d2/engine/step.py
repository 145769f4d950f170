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
from meinst_d2.engine.launch import Termination


class TrainStep(SimpleTrainer):
    """Detectron2's SimpleTrainer with four differences.

    - Every process sees all losses before the weights are touched: one that is not finite stops all of them, and so
      does SIGTERM to one, after the update. The same exchange and read from the device serve the logged metrics.
    - The random numbers of an iteration follow from (seed, iteration, rank), so training can resume at any iteration.
    - A batch may be learned in parts, with the gradients of the whole.
    - The loss is scaled where the model computes in float16, on CPU and GPU.

    Attributes:
        last_batch: what the last iteration learned from.
        termination: whether SIGTERM has come to this process.
        all_stop: whether it had come to any process when they last exchanged their losses.
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
            model, data_loader, optimizer: inputs -> losses by name; iterable over lists of inputs; of the model.
            seed: not negative.
            scale_loss: for models that compute in float16.
            accumulation: parts that a batch is learned in.
            failures: folder for batches whose loss is not finite; "" keeps none.
        """
        super().__init__(model, data_loader, optimizer)
        self.seed, self.accumulation, self.failures = seed, accumulation, failures
        device = next(model.parameters()).device
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=scale_loss)
        self.last_batch: Sequence[Mapping[str, Any]] = ()
        self.termination, self.all_stop = Termination(), False

    def run_step(self) -> None:
        start = time.perf_counter()
        data = self.last_batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        torch.manual_seed(self._iteration_seed())
        self.optimizer.zero_grad()
        losses = self._learn(data)
        self.after_backward()
        self._check_and_log(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _iteration_seed(self) -> int:
        entropy = (self.seed, self.iter, comm.get_rank())
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _learn(self, data: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Forward and backward; the losses and gradients of the whole batch, with the memory of a part."""
        detector, parts, total = getattr(self.model, "module", self.model), self.accumulation, dict[str, Tensor]()
        with detector.as_parts_of(data, parts) if parts > 1 else nullcontext():
            for first in range(parts):
                exchanges = first == parts - 1 or self.model is detector
                with nullcontext() if exchanges else self.model.no_sync():
                    losses = {name: loss / parts for name, loss in self.model(data[first::parts]).items()}
                    self.grad_scaler.scale(sum(losses.values())).backward()
                total = {name: total.get(name, 0) + loss.detach() for name, loss in losses.items()}
        return total

    def _check_and_log(self, losses: Mapping[str, Tensor], data_time: float) -> None:
        mine = torch.stack([loss.float() for loss in losses.values()])
        mine = torch.cat((mine, mine.new_tensor([data_time, self.termination.requested])))
        gathered = [mine]
        if comm.get_world_size() > 1:
            gathered = [torch.empty_like(mine) for _ in range(comm.get_world_size())]
            dist.all_gather(gathered, mine)
        table = torch.stack(gathered).tolist()  # (ranks, losses + 2): the one time the host waits for the device
        failed = [rank for rank, row in enumerate(table) if not all(map(math.isfinite, row[:-2]))]
        if failed:
            self._stop({rank: dict(zip(losses, table[rank], strict=False)) for rank in failed})
        self.all_stop = any(row[-1] for row in table)
        if comm.is_main_process():
            means = dict(zip(losses, np.mean([row[:-2] for row in table], axis=0).tolist(), strict=True))
            data_time = max(row[-2] for row in table)
            get_event_storage().put_scalars(data_time=data_time, total_loss=sum(means.values()), **means)

    def _stop(self, failed: Mapping[int, Mapping[str, float]]) -> None:
        """Raise on every process once each of those that failed, given with their losses, has kept its batch."""
        rank, mine = comm.get_rank(), None
        if rank in failed:
            state = getattr(self.model, "module", self.model).state_dict()
            batch = FailedBatch(self.iter, rank, self._iteration_seed(), failed[rank], self.last_batch, state)
            where = ""
            if self.failures:
                try:
                    where = f" (meinst replay {batch.save(self.failures)} shows it again)"
                except OSError as error:
                    where = f" (which could not be kept: {error})"
            mine = (batch.image_ids, where)
        found = comm.all_gather(mine)
        sentences = []
        for number, losses in failed.items():
            values = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
            process = f" on process {number}" if len(found) > 1 else ""
            sentences.append(f"{values}{process} with the images {', '.join(found[number][0])}{found[number][1]}")
        raise FloatingPointError(
            f"the loss of iteration {self.iter} is not finite: {'; '.join(sentences)}. The weights are still those of "
            "the iteration before. Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or enable "
            "SOLVER.CLIP_GRADIENTS, then resume with --resume"
        )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty in checkpoints of runs without loss scaling
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
