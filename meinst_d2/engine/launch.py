"""Detectron2's launch of processes, with the way that SIGTERM and a lost process end a job."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from detectron2.engine import launch as launch_processes
from torch.multiprocessing import ProcessExitedException

from meinst_d2.data.datasets import DatasetError
from meinst_d2.engine.preemption import EXIT_CODE, passing_on_sigterm


def launch(
    main: Callable[..., Any], num_gpus: int, num_machines: int, machine_rank: int, dist_url: str, args: tuple[Any, ...]
) -> None:
    """As Detectron2's.

    SIGTERM to this process goes to all that it started, and when they have saved and ended, this one ends with the same
    exit code. A process that is killed ends the others, and the job, with a sentence; so does a dataset that cannot be
    loaded in the only process.
    """
    try:
        with passing_on_sigterm() if num_gpus > 1 else nullcontext():
            launch_processes(_forking, num_gpus, num_machines, machine_rank, dist_url, (main, args))
    except DatasetError as error:
        sys.exit(f"meinst train: {error}")
    except ProcessExitedException as error:
        if error.exit_code == EXIT_CODE:
            sys.exit(EXIT_CODE)
        why = error.signal_name or f"exit code {error.exit_code}"
        sys.exit(
            f"meinst train: process {error.error_index} of {num_gpus} ended ({why}) and the others with it; the last "
            "checkpoint is whole: go on with --resume"
        )


def _forking(main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Run in every process. Loaders are forked, as in a process that nothing has launched: one that is spawned imports
    everything anew, which takes seconds and half a gigabyte per loader.
    """
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
    main(*args)
