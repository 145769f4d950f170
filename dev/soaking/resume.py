"""Training that is killed again and again, and resumed, against training that is not."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from soaking.run import TrainingRun, compare, iterations_lost, kill_all, losses_by_iteration, make_data

CHECKPOINT_PERIOD, EVAL_PERIOD = 10, 20
ITERATIONS_PER_KILL = 12
LONGEST, LONGEST_WAIT = 14, 0.3
"""Iterations and seconds from a start to a kill at a random moment."""
TIMEOUT = 300
AIMED = ("best@19", "before@20", "gradients@23", "learned@26", "checkpoint@29", "tag@29", "evaluation@39")
"""One kill at every moment that a random one may miss."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL to all processes of a run.

    Attributes:
        moment: what was going on.
        lost: iterations that had to be done again.
    """

    moment: str
    lost: int


def soak_resume(folder: Path, processes: int, num_kills: int, seed: int) -> tuple[list[Kill], list[str], int]:
    """Kill a run at aimed and at random moments.

    Args:
        folder: for two runs; must be empty.
        processes: that train together.
        num_kills: at random moments, beside the aimed ones.
        seed: of the moments.

    Returns:
        The kills, where the run differs from one that was not killed, and how many iterations were compared.
    """
    make_data(folder / "data")
    iterations = (num_kills + len(AIMED)) * ITERATIONS_PER_KILL
    whole, killed = (
        TrainingRun(folder / name, folder / "data", processes, iterations, CHECKPOINT_PERIOD, EVAL_PERIOD)
        for name in ("whole", "killed")
    )
    if whole.finish():
        raise RuntimeError(f"training failed: {whole.output[-2000:]}")
    moments = [*_kill_at(killed), *_kill_at_random(killed, num_kills, random.Random(seed))]
    if killed.finish(resume=True):
        raise RuntimeError(f"training failed: {killed.output[-2000:]}")
    lost = iterations_lost(killed.events())
    kills = [Kill(*pair) for pair in zip(moments, lost, strict=True)]
    return kills, compare(whole, killed), len(losses_by_iteration(whole.events()))


def _kill_at(run: TrainingRun) -> Iterator[str]:
    for number, moment in enumerate(AIMED):
        if run.finish(resume=True, kill=moment) != -9:
            raise RuntimeError(f"{moment} was not reached: {run.output[-2000:]}")
        yield _say(run, number, moment)


def _kill_at_random(run: TrainingRun, num_kills: int, rng: random.Random) -> Iterator[str]:
    """Some iterations after the start, and some time after that: whatever is going on then."""
    for number in range(num_kills):
        before = len(run.events())
        process = run.start(resume=True)
        iterations, end = rng.randint(0, LONGEST), time.monotonic() + TIMEOUT
        while not _has_done(run.events()[before:], iterations) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, LONGEST_WAIT))
        if process.poll() is not None:
            raise RuntimeError(f"training ended before it was killed: {run.output[-2000:]}")
        kill_all(process)
        yield _say(run, len(AIMED) + number, _what_was_going_on(run.events()))


def _has_done(events: Sequence[str], iterations: int) -> bool:
    return sum(line.startswith(("start ", "iteration ")) for line in events) > iterations


def _say(run: TrainingRun, number: int, moment: str) -> str:
    print(f"{run.processes} process(es), kill {number + 1}: {moment}", flush=True)
    return moment


def _what_was_going_on(events: Sequence[str]) -> str:
    open_blocks: list[str] = []
    iteration = "the first iteration"
    for line in events:
        word, _, rest = line.partition(" ")
        if word == "start":
            open_blocks, iteration = [], f"iteration {rest}"
        elif word == "begin":
            open_blocks.append(rest)
        elif word == "end":
            open_blocks.remove(rest)
        elif word == "iteration":
            iteration = f"iteration {int(rest.split()[0]) + 1}"
    names = {"save": "writing a file", "evaluation": "an evaluation"}
    return (
        f"{' in '.join(names[name] for name in reversed(open_blocks))} before {iteration}" if open_blocks else iteration
    )
