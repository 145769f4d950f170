"""How much memory fitting takes, in processes of its own."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.annotations import write_json_of
from benchmarks.common import ROOT, Goal, Row, Side

PARSE = "import json, sys; import meinst_d2.fitting.count; content = json.load(open(sys.argv[1]))"
FIT = """
import sys
from meinst_d2.fitting.count import count_moments
from meinst_d2.data.coco import read_coco_json
count_moments(read_coco_json(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
"""


def memory(args: argparse.Namespace, folder: Path) -> Row:
    """How much more memory a fit takes than parsing its JSON, for few masks and for many."""
    beyond, notes = [], {}
    for count in args.memory_masks:
        file = folder / "memory.json"
        write_json_of(args.data, count, file)
        parsed = peak_memory(PARSE, str(file))
        fitted = peak_memory(FIT, str(file), str(args.mask_size), str(args.workers))
        beyond.append(fitted - parsed)
        notes[f"{count:,} masks"] = f"{parsed:.0f} MB to parse the JSON, {fitted:.0f} MB to parse and fit"
    growth = beyond[1] - beyond[0]
    what = f"memory from {args.memory_masks[0]:,} to {args.memory_masks[1]:,} masks, beyond the parsed JSON"
    side = Side(f"{args.workers} workers", [growth])
    return Row(what, side, unit="MB", goal=Goal("< 50 MB", growth < 50), notes=notes)


def peak_memory(code: str, *arguments: str) -> float:
    """Most memory of a Python process and its children in MB, pages that they share counted once."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(map(proportional_memory, [process.pid, *children(process.pid)])))
        time.sleep(0.02)
    if process.returncode:
        raise OSError(f"the process to measure ended with exit code {process.returncode}")
    return peak


def proportional_memory(process: int) -> float:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:
        return []
