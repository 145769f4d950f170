"""A function over the chunks of a long list of annotations, in one forked process per worker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits
from tqdm import tqdm

T = TypeVar("T")
_work: tuple[Any, ...] = ()
"""What a worker has from the process that it was forked from."""


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
        function: takes an iterator over chunks of the items, and ``args``; computes in one thread.
        items: of the dataset; may be none.
        workers: processes; with one, this process does the work.
        title, unit: of the bar.
        args: what ``function`` needs besides; like the items shared with the processes, not pickled.
        chunk: items at a time.

    Raises:
        ChildProcessError: a process was killed. What the function raises in a process is raised here.
    """
    num_chunks = -(-len(items) // chunk)
    workers = max(1, min(workers, num_chunks))
    bar = tqdm(total=len(items), desc=title, unit=unit, unit_scale=True, dynamic_ncols=True)
    with bar, threadpool_limits(1):
        if workers == 1:
            return [function(_chunks(items, range(num_chunks), chunk, bar.update), *args)]
        context = multiprocessing.get_context("fork")
        done = context.RawArray("q", workers + 1)  # items of each worker; and whether all shall stop
        gc.freeze()  # the collector would touch, and so copy, every shared page in every process
        pool = ProcessPoolExecutor(workers, context, _start, (function, items, args, chunk, workers, done))
        try:
            futures = [pool.submit(_run_shard, worker) for worker in range(workers)]
            running = set(futures)
            while running:
                finished, running = wait(running, timeout=0.1, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()  # raises what was raised there
                bar.update(sum(done) - bar.n)
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise ChildProcessError("a worker was killed: if memory ran out, use fewer --workers") from None
        finally:
            done[-1] = True
            pool.shutdown()
            gc.unfreeze()


def _start(*work: Any) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would speak for the parent
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # workers do not outlive it


def _run_shard(worker: int) -> Any:
    function, items, args, chunk, workers, done = _work

    def count(number: int) -> None:
        done[worker] += number
        if done[-1]:
            raise InterruptedError("the work was stopped")

    return function(_chunks(items, range(worker, -(-len(items) // chunk), workers), chunk, count), *args)


def _chunks(items: Sequence[T], chunks: range, chunk: int, count: Callable[[int], object]) -> Iterator[Sequence[T]]:
    for number in chunks:
        part = items[number * chunk : (number + 1) * chunk]
        yield part
        count(len(part))
