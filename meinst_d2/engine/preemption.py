"""SIGTERM, by which schedulers take a machine away: training saves and ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM
"""What a process that ends so returns: not 0, so that a scheduler starts the job again."""


class Preempted(SystemExit):
    """Training ends because of SIGTERM."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Termination:
    """Whether SIGTERM has come.

    Attributes:
        requested: it has.
        interruptible: it raises :class:`Preempted` at once, where what is going on can be done again.
    """

    def __init__(self) -> None:
        self.requested = self.interruptible = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within the block SIGTERM is noticed; in a thread that is not the main one it has its usual effect."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._notice)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

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

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self.interruptible:
            raise Preempted


@contextmanager
def passing_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM goes to the processes that this one has started, and not to itself."""

    def pass_on(*_: Any) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
