#!/usr/bin/env python
"""Long tests of what training promises: that it resumes exactly after any kill, and that memory does not grow."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  dev/soak.py resume --processes 2 --kills 20
  dev/soak.py load --iterations 5000 --predictions 5000
  dev/soak.py all
"""
LARGEST_DRIFT = 0.02


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("resume", "load", "all"))
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="resume: that train (default 1 and 2)")
    parser.add_argument("--kills", type=int, default=20, help="resume: at random moments (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="resume: of the moments (default 0)")
    parser.add_argument("--iterations", type=int, default=5000, help="load: of training (default 5000)")
    parser.add_argument("--predictions", type=int, default=5000, help="load: images (default 5000)")
    parser.add_argument("--output", type=Path, default=ROOT / "output/soak", help="folder (default output/soak)")
    return parser.parse_args()


def resume(args: argparse.Namespace) -> bool:
    """Print a table; whether everything was the same to the last bit."""
    from soaking.resume import CHECKPOINT_PERIOD, soak_resume

    good = True
    for processes in args.processes:
        with tempfile.TemporaryDirectory(prefix="soak") as folder:
            kills, differences, iterations = soak_resume(Path(folder), processes, args.kills, args.seed)
        print(f"\n| {processes} process(es): SIGKILL at | iterations done again |\n|---|---|")
        for kill in kills:
            print(f"| {kill.moment} | {kill.lost} |")
        most = max(kill.lost for kill in kills)
        good &= not differences and most <= CHECKPOINT_PERIOD
        print(
            f"\n{len(kills)} kills in {iterations} iterations; at most {most} iterations done again, a checkpoint ",
            end="",
        )
        print(f"every {CHECKPOINT_PERIOD}.")
        same = "the same bits as in a run that was not killed"
        print(f"Losses, last checkpoint and best weights: {'; '.join(differences) if differences else same}.\n")
    return good


def load(args: argparse.Namespace) -> bool:
    """Print a table and draw memory; whether nothing grew."""
    from soaking.load import draw, predict_long, train_long

    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        usages = [in_new_process(train_long, Path(folder), args.iterations)]
        usages.append(in_new_process(predict_long, Path(folder) / "run/model_final.pth", args.predictions))
    print(
        "\n| what | memory at the end | drift after warm-up | more open files | more processes |\n|---|---|---|---|---|"
    )
    for usage in usages:
        files, processes = usage.left_behind
        what = f"{usage.done[-1]} {usage.unit} of {usage.what}"
        print(f"| {what} | {usage.megabytes[-1]:.0f} MB | {usage.drift:+.2%} | {files} | {processes} |")
    args.output.mkdir(parents=True, exist_ok=True)
    draw(usages, args.output / "memory.png")
    print(f"\nwrote {args.output / 'memory.png'}")
    return all(usage.drift < LARGEST_DRIFT and max(usage.left_behind) <= 0 for usage in usages)


def in_new_process(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns in a process that nothing else has run in."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def main() -> None:
    args = parse_args()
    commands = {"resume": resume, "load": load}
    chosen = commands.values() if args.command == "all" else [commands[args.command]]
    if not all([command(args) for command in chosen]):
        sys.exit("soak.py: a promise does not hold, see the tables")


if __name__ == "__main__":
    main()
