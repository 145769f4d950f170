"""A function over the chunks of a long list of annotations, in one forked process per worker."""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_any
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits
from tqdm import tqdm

T = TypeVar("T")


def run_shards(
    function: Callable[..., T],
    items: Sequence[Any],
    workers: int,
    title: str,
    *args: Any,
    chunk: int,
    unit: str = " masks",
) -> list[T]:
    """Call ``function(chunks, *args)`` once per worker, each on every workers-th chunk, with a progress bar.

    Args:
        function: takes an iterator over chunks of the items, and ``args``.
        items: of the dataset; may be none.
        workers: processes; with one, this process does the work.
        title: of the bar.
        args: what ``function`` needs besides; shared with the processes, not pickled.
        chunk: items at a time.
        unit: what the bar counts.

    Raises:
        ChildProcessError: a process was killed. What the function raises in a process is raised here.
    """
    num_chunks = -(-len(items) // chunk)
    workers = max(1, min(workers, num_chunks))
    with tqdm(total=len(items), desc=title, unit=unit, unit_scale=True, dynamic_ncols=True) as bar:
        if workers == 1:
            return [function(_chunks(items, range(num_chunks), chunk, bar.update), *args)]
        shards = [range(first, num_chunks, workers) for first in range(workers)]
        return _in_processes([(function, items, shard, chunk, args) for shard in shards], bar.update)


def _in_processes(calls: Sequence[tuple[Any, ...]], count: Callable[[int], object]) -> list[Any]:
    """What the calls return, each in its own process."""
    context = multiprocessing.get_context("fork")
    running: dict[Any, tuple[int, BaseProcess]] = {}
    results: list[Any] = [None] * len(calls)
    gc.freeze()  # the collector would touch, and so copy, every shared page in every process
    try:
        for number, call in enumerate(calls):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_call, args=(sender, *call), daemon=True)
            process.start()
            sender.close()
            running[receiver] = number, process
        while running:
            for receiver in wait_for_any(list(running)):
                number, process = running[receiver]
                kind, value = _receive(receiver, process)  # type: ignore[arg-type]
                if kind == "error":
                    raise value
                if kind == "done":
                    count(value)
                else:
                    results[number] = value
                    del running[receiver]
                    process.join()
        return results
    finally:
        gc.unfreeze()
        for _, process in running.values():
            process.terminate()
            process.join()


def _receive(receiver: Connection, process: BaseProcess) -> tuple[str, Any]:
    """What a process says: "done" and a number of items, "result" and it, or "error" and the exception."""
    try:
        message: tuple[str, Any] = receiver.recv()
    except EOFError:
        process.join()
        raise ChildProcessError(
            f"a worker process was stopped (exit code {process.exitcode}): if memory ran out, use fewer --workers"
        ) from None
    return message


def _call(
    sender: Connection,
    function: Callable[..., Any],
    items: Sequence[Any],
    shard: range,
    chunk: int,
    args: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would speak for the parent
    try:
        with threadpool_limits(1):  # one process per core already
            result = function(_chunks(items, shard, chunk, lambda done: sender.send(("done", done))), *args)
        sender.send(("result", result))
    except BrokenPipeError:
        return  # the parent is gone
    except Exception as error:
        sender.send(("error", error))


def _chunks(items: Sequence[T], chunks: range, chunk: int, count: Callable[[int], object]) -> Iterator[Sequence[T]]:
    for number in chunks:
        part = items[number * chunk : (number + 1) * chunk]
        yield part
        count(len(part))
