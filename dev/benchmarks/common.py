"""What the benchmarks share: alternating measurement, the table, the machine's description, the JSON.

Imports nothing heavy, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "detectron2", "numpy", "pycocotools", "opencv-python-headless", "scikit-learn")


@dataclass(frozen=True)
class Side:
    """One of the two things that are compared.

    Attributes:
        name: of the implementation.
        samples: one measurement per round, in the row's unit.
    """

    name: str
    samples: Sequence[float]


@dataclass(frozen=True)
class Goal:
    """What a row must show, in words, and whether it does."""

    text: str
    met: bool


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: is measured, with its sizes.
        ours: measured.
        baseline: measured in the same rounds, in turns with ``ours``; None where nothing compares.
        unit: of the samples; less is better.
        goal: what the row must show.
        notes: further findings by name, such as "pixels that differ".
    """

    what: str
    ours: Side
    baseline: Side | None = None
    unit: str = "ms"
    goal: Goal | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """How many times less ours takes than the baseline, per round."""
        if self.baseline is None:
            return []
        return [theirs / ours for ours, theirs in zip(self.ours.samples, self.baseline.samples, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of :attr:`ratios`."""
        return statistics.median(self.ratios)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that every benchmark has."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with coco/ and coco_polygons/ (default ../shared/data where it exists, else generated shapes)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where models run (default cpu)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of both sides (default: one per core)"
    )
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each side (default 7)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")


def set_threads(threads: int) -> None:
    """Let torch, OpenCV and BLAS use this many threads in this process."""
    import cv2
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    threadpool_limits(threads)


def alternate(
    sides: Mapping[str, Callable[[], Any]], rounds: int, *, device: str = "cpu", at_least: float = 0.02
) -> dict[str, Side]:
    """Measure several functions in turns (A B A B ...), after one call of each to warm up.

    Args:
        sides: functions by name.
        rounds: samples of each.
        device: "cuda" waits for the GPU around each sample.
        at_least: seconds per sample; a function that is done sooner is called several times per sample.

    Returns:
        Milliseconds per call, by the same names.
    """
    if device == "cuda":
        import torch

        wait: Callable[[], Any] = torch.cuda.synchronize
    else:
        wait = int  # returns at once

    def seconds(function: Callable[[], Any], calls: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            function()
        wait()
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, function in sides.items():
        function()
        calls[name] = max(1, round(at_least / max(seconds(function, 1), 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, function in sides.items():
            samples[name].append(1e3 * seconds(function, calls[name]))
    return {name: Side(name, values) for name, values in samples.items()}


class PeakMemory:
    """Measures the most memory used within a block, above what was in use before it.

    Resident memory of this process on the CPU (Linux), allocated memory on a GPU.

    Attributes:
        megabytes: after the block.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.megabytes = 0.0

    def __enter__(self) -> PeakMemory:
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = float(torch.cuda.memory_allocated())
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is reset
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            import torch

            peak = float(torch.cuda.max_memory_allocated())
        else:
            peak = _status("VmHWM")
        self.megabytes = (peak - self._before) / 1e6


def _status(name: str) -> float:
    """Bytes, from the kernel's description of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device == "cuda":
        import torch

        found["gpu"] = torch.cuda.get_device_name()
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print a Markdown table: medians, (lowest to highest), ratios, goals; then the notes."""
    cells = [["what", "ours", "baseline", "ratio", "must"]]
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal.text}: {'yes' if row.goal.met else 'NO'}"
        ratio = _spread(row.ratios, "") if row.baseline else ""
        baseline = f"{row.baseline.name} {_spread(row.baseline.samples, row.unit)}" if row.baseline else ""
        cells.append([row.what, f"{row.ours.name} {_spread(row.ours.samples, row.unit)}", baseline, ratio, goal])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n{title}\n")
    for number, line in enumerate(cells):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in rows:
        for name, value in row.notes.items():
            print(f"  {row.what}: {name} {value}")


def _spread(samples: Sequence[float], unit: str) -> str:
    values = [min(samples), statistics.median(samples), max(samples)]
    if unit == "ms" and values[1] >= 1000:
        unit, values = "s", [value / 1000 for value in values]
    low, middle, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in values)
    return f"{middle}{unit and ' '}{unit}" + (f" ({low} to {high})" if len(samples) > 1 else "")


def write_json(path: Path, machine: Mapping[str, Any], tables: Mapping[str, Sequence[Row]]) -> None:
    """Every sample, with the machine and the command line."""
    from meinst_d2.files import atomic_path

    content = {
        "command": sys.argv,
        "machine": dict(machine),
        "tables": {title: [_as_dict(row) for row in rows] for title, rows in tables.items()},
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str))


def _as_dict(row: Row) -> dict[str, Any]:
    sides = {"ours": row.ours, "baseline": row.baseline}
    return {
        "what": row.what,
        "unit": row.unit,
        **{
            key: {"name": side.name, "median": statistics.median(side.samples), "samples": list(side.samples)}
            for key, side in sides.items()
            if side is not None
        },
        "ratio": row.ratio if row.baseline else None,
        "goal": row.goal and {"text": row.goal.text, "met": bool(row.goal.met)},
        "notes": dict(row.notes),
    }
