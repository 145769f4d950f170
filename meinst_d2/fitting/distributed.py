"""Fitting with the processes that torchrun starts, on one machine or several.

Every rank counts its share of the annotations. Counts are integers, so their sum, and the file made from it, is the
same for any number of ranks. Only the first rank prints and writes.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from meinst_d2.data.annotations import InstanceAnnotation, Selection

T = TypeVar("T")

POLL_SECONDS = 0.002


class LostRankError(ConnectionError):
    """Other ranks of the job are not there, or no longer."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a fit; by default this one alone.

    Attributes:
        rank: of this process.
        size: number of processes.
        timeout: longest wait for the others, in seconds.
        device: where sums are made: "cpu" for gloo, this rank's GPU for nccl.
    """

    rank: int = 0
    size: int = 1
    timeout: float = 300.0
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a short list."""
        return list(items[self.rank :: self.size])

    def share_annotations(self, annotations: Sequence[InstanceAnnotation]) -> Sequence[InstanceAnnotation]:
        """This rank's part of the annotations, which every rank has in the same order."""
        if self.size == 1:
            return annotations
        return Selection(annotations, range(self.rank, len(annotations), self.size))

    def sum(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Add up an array over the ranks; all of them must call this, with arrays of the same shape.

        Raises:
            LostRankError: another rank ended, or did not call within the timeout.
        """
        if self.size == 1:
            return counts
        tensor = torch.from_numpy(counts).to(self.device)
        try:
            work = dist.all_reduce(tensor, async_op=True)
            deadline = time.monotonic() + self.timeout
            while not work.is_completed():  # a wait inside torch would not let SIGTERM through
                if time.monotonic() > deadline:
                    raise LostRankError(
                        f"rank {self.rank} of {self.size} waited {self.timeout:g} s in vain for another rank to finish "
                        "its share: see what became of it, or give slow ranks longer with --rank-timeout"
                    )
                time.sleep(POLL_SECONDS)
            work.wait()
        except RuntimeError as error:
            raise LostRankError(
                f"rank {self.rank} of {self.size} lost the connection to another rank, which ended early "
                f"({_first_line(error)})"
            ) from error
        return tensor.cpu().numpy()


def ranks_of_this_machine() -> int:
    """How many processes share the cores of this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextmanager
def join_ranks(timeout: float, backend: str = "gloo") -> Iterator[Ranks]:
    """The ranks of the job that torchrun started this process for; without torchrun, this process alone.

    Within the context, ranks but the first print nothing, and SIGTERM, by which torchrun ends the ranks of a job that
    failed, raises SystemExit, so that files in the making are removed.

    Args:
        timeout: longest wait for other ranks, in seconds.
        backend: "gloo" or "nccl".

    Raises:
        LostRankError: not all ranks came within the timeout.
        ValueError: nccl without a GPU for this rank.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Ranks()
        return
    rank, size, local = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0))
    if backend == "nccl" and local >= torch.cuda.device_count():
        raise ValueError(f"rank {rank} has no GPU for nccl (this machine has {torch.cuda.device_count()}): use gloo")

    try:
        # Longer than ours: nccl's watchdog would abort the process without a word.
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout if backend == "gloo" else 2 * timeout + 60))
    except RuntimeError as error:
        raise LostRankError(
            f"rank {rank} of {size} did not meet the others within {timeout:g} s ({_first_line(error)})"
        ) from error

    def stop(*_: Any) -> None:
        name = Path(sys.argv[0]).name
        sys.exit(f"{name}: rank {rank} of {size} was stopped: another rank failed, or the job was cancelled")

    before = signal.signal(signal.SIGTERM, stop)
    with ExitStack() as stack:
        if rank > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield Ranks(rank, size, timeout, "cpu" if backend == "gloo" else f"cuda:{local}")
    dist.destroy_process_group()
    signal.signal(signal.SIGTERM, before)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
