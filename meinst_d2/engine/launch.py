"""How a run begins and ends: log, seed, processes, and SIGTERM, by which schedulers take a machine away."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup as setup_of_detectron2
from detectron2.engine import launch as launch_processes
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from meinst_d2.data.datasets import DatasetError
from meinst_d2.files import atomic_path

EXIT_CODE = 128 + signal.SIGTERM
"""What a process that SIGTERM ends returns: not 0, so that a scheduler starts the job again."""


class Preempted(SystemExit):
    """Training ends because of SIGTERM."""

    code = EXIT_CODE


class LostWorkerError(RuntimeError):
    """Training cannot continue without a process of the loader."""


SENTENCES = (DatasetError, LostWorkerError)
"""Errors of a run that say in a sentence what its user can do."""
SENTENCE = re.compile(rf"\b(?:{'|'.join(error.__name__ for error in SENTENCES)}): (.+)\Z", re.DOTALL)


@contextmanager
def _on_sigterm(function: Callable[..., None]) -> Iterator[None]:
    """Within the block SIGTERM calls a function; in a thread that is not the main one it has its usual effect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, function)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Termination:
    """Whether SIGTERM has come.

    Attributes:
        requested: it has.
        interruptible: it raises :class:`Preempted` at once, where what is going on can be done again.
    """

    def __init__(self) -> None:
        self.requested = self.interruptible = False

    def handled(self) -> AbstractContextManager[None]:
        """Within the block SIGTERM is noticed."""
        return _on_sigterm(self._notice)

    def _notice(self, *_: Any) -> None:
        self.requested = True
        if self.interruptible:
            raise Preempted

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Within the block SIGTERM raises at once, also if it came before."""
        self.interruptible = True
        try:
            if self.requested:
                raise Preempted
            yield
        finally:
            self.interruptible = False


def _pass_on(*_: Any) -> None:
    """SIGTERM to the processes that this one has started."""
    for child in multiprocessing.active_children():
        child.terminate()


def launch(
    main: Callable[..., Any], num_gpus: int, num_machines: int, machine_rank: int, dist_url: str, args: tuple[Any, ...]
) -> None:
    """Like Detectron2's, but how it ends.

    SIGTERM to this process goes to all that it started; when they have saved and ended, it ends with their exit code. A
    process that is killed ends all others and the job with a sentence, as do the errors of SENTENCES.
    """
    try:
        with _on_sigterm(_pass_on) if num_gpus * num_machines > 1 else nullcontext():
            launch_processes(_forking, num_gpus, num_machines, machine_rank, dist_url, (main, args))
    except SENTENCES as error:
        sys.exit(f"meinst train: {error}")
    except ProcessRaisedException as error:
        said = SENTENCE.search(error.msg)  # at the end of the other process's traceback
        if said is None:
            raise
        sys.exit(f"meinst train: {said[1].strip()}")
    except ProcessExitedException as error:
        if error.exit_code == EXIT_CODE:
            sys.exit(EXIT_CODE)
        ended = f"{error.error_index} of {num_gpus} ended ({error.signal_name or f'exit code {error.exit_code}'})"
        fix = "the last checkpoint is whole: resume with --resume"
        sys.exit(f"meinst train: process {ended} and the others with it; {fix}")


def _forking(main: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Run in every process. Loaders are forked: a spawned one imports everything again, in seconds and half a GB.

    The processes of a machine share its cores, where each would start as many threads as there are cores.
    """
    if sys.platform == "linux":
        multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(max(torch.get_num_threads() // comm.get_local_size(), 1))
    main(*args)


def default_setup(cfg: Any, args: argparse.Namespace) -> None:
    """Detectron2's, with the messages of this package in the same log."""
    setup_of_detectron2(cfg, args)
    folder = cfg.OUTPUT_DIR if isinstance(cfg, CfgNode) else cfg.train.output_dir
    setup_logger(folder, distributed_rank=comm.get_rank(), name="meinst_d2", abbrev_name="meinst")


def settle_seed(seed: int, output_dir: str | os.PathLike[str], resume: bool) -> int:
    """The seed of a run, the same on every process, which all call this.

    A negative one is replaced by one drawn once and kept in ``output_dir/seed.txt``, where a resumed run finds it.
    """
    if seed >= 0:
        return seed
    path, seed = Path(output_dir) / "seed.txt", comm.shared_random_seed() % 2**31
    if comm.is_main_process():
        if resume and path.exists():
            seed = int(path.read_text())
        else:
            with atomic_path(path) as temporary:
                temporary.write_text(f"{seed}\n")
    return comm.all_gather(seed)[0]
