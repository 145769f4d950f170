import os
import signal
from collections.abc import Iterator

import pytest

from meinst_d2.data.parallel import run_shards


def total(chunks: Iterator[list[int]], factor: int) -> tuple[int, list[int], int]:
    parts = list(chunks)
    return factor * sum(map(sum, parts)), [len(part) for part in parts], os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
def test_every_item_is_seen_once(workers: int) -> None:
    results = run_shards(total, list(range(103)), workers, "test", 2, chunk=10)
    assert sum(value for value, _, _ in results) == 2 * sum(range(103))
    assert sorted(size for _, sizes, _ in results for size in sizes) == [3] + [10] * 10
    assert len(results) == min(workers, 11)
    assert all(abs(len(sizes) - 11 / len(results)) < 1 for _, sizes, _ in results)
    assert (os.getpid() in {process for _, _, process in results}) == (workers == 1)


def fail(chunks: Iterator[list[int]], killed: bool) -> None:
    if any(55 in chunk for chunk in chunks):
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("item 55 is bad")


def test_what_a_process_raises_is_raised_here_and_a_killed_one_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="item 55 is bad"):
        run_shards(fail, list(range(100)), 3, "test", False, chunk=10)
    with pytest.raises(ChildProcessError, match="a worker was killed: if memory ran out, use fewer --workers"):
        run_shards(fail, list(range(100)), 3, "test", True, chunk=10)
    assert [value for value, _, _ in run_shards(total, [], 4, "test", 1, chunk=10)] == [0]
