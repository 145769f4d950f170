"""Fitting with the processes (ranks) that torchrun starts: whole numbers add up to the same with any number of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from meinst_d2.data.annotations import InstanceAnnotation, Selection
from meinst_d2.masks.rasterize import IntArray


class LostRankError(ConnectionError):
    """Other ranks of the job are not there, or no longer."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a fit: rank, size, longest wait in seconds, device of sums. By default one alone."""

    rank: int = 0
    size: int = 1
    timeout: float = 300.0
    device: str = "cpu"

    def share(self, items: Sequence[InstanceAnnotation]) -> Sequence[InstanceAnnotation]:
        """This rank's part of what every rank has in the same order."""
        return items if self.size == 1 else Selection(items, range(self.rank, len(items), self.size))

    def sum(self, counts: IntArray) -> IntArray:
        """Add up an array over the ranks; all call this, with the same shape, or it raises LostRankError."""
        if self.size == 1:
            return counts
        tensor, deadline = torch.from_numpy(counts).to(self.device), time.monotonic() + self.timeout
        me = f"rank {self.rank} of {self.size}"
        try:
            work = dist.all_reduce(tensor, async_op=True)
            while not work.is_completed() and time.monotonic() < deadline:
                time.sleep(0.002)  # a wait inside torch would not let SIGTERM through
            if not work.is_completed():
                raise LostRankError(f"{me} waited {self.timeout:g} s in vain for another rank: raise --rank-timeout")
            work.wait()
        except RuntimeError as error:
            raise LostRankError(f"{me} lost the connection to another rank, which ended early") from error
        return tensor.cpu().numpy()


@contextmanager
def join_ranks(timeout: float, backend: str = "gloo") -> Iterator[Ranks]:
    """The ranks of torchrun's job; without torchrun, this process alone. All but the first print nothing.

    SIGTERM, by which torchrun ends a job that failed, raises SystemExit, so that files in the making are removed;
    LostRankError says that not all came within the timeout (seconds), ValueError that nccl lacks a GPU.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    rank, size, local = (int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if backend == "nccl" and local >= torch.cuda.device_count():
        raise ValueError(f"rank {rank} has no GPU for nccl (this machine has {torch.cuda.device_count()}): use gloo")
    try:  # nccl's watchdog aborts without a word: it waits longer than we do
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout if backend == "gloo" else 2 * timeout + 60))
    except RuntimeError as error:
        why = f"did not meet the others within {timeout:g} s ({str(error).splitlines()[0]})"
        raise LostRankError(f"rank {rank} of {size} {why}") from error
    end = f"meinst fit: rank {rank} of {size} was stopped: another rank failed, or the job was cancelled"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(end))
    with open(os.devnull, "w") as nowhere:
        out, err = (nowhere, nowhere) if rank else (sys.stdout, sys.stderr)
        with redirect_stdout(out), redirect_stderr(err):
            yield Ranks(rank, size, timeout, "cpu" if backend == "gloo" else f"cuda:{local}")
    dist.destroy_process_group()
