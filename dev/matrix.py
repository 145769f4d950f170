#!/usr/bin/env python
"""Run the tests with the oldest and the newest torch, and with a Detectron2 that is not compiled; fill docs/install.md.

Every row gets an environment of its own, which takes minutes and 5 GB, and is kept for the next time.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst_d2 import DETECTRON2_COMMIT
from meinst_d2.files import atomic_path

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
NEEDED_BY_DETECTRON2 = (
    *("pycocotools", "termcolor", "yacs", "tabulate", "cloudpickle", "tqdm", "tensorboard", "fvcore<0.1.6"),
    *("iopath<0.1.10", "omegaconf<2.4", "hydra-core>=1.1", "black", "packaging", "matplotlib"),
)
TABLE = ROOT / "docs/install.md"
HEADER = "| Python | torch | torchvision | Detectron2 | tests |\n|---|---|---|---|---|\n"
SUMMARY = re.compile(r"(?:\d+ (?:passed|failed|skipped|errors?|xfailed|warnings?)(?:, )?)+ in ")
EXAMPLES = """examples:
  dev/matrix.py                     # every row
  dev/matrix.py --row oldest        # one
"""


@dataclass(frozen=True)
class Row:
    """One combination of versions.

    Attributes:
        torch, torchvision: versions.
        compiled: Detectron2 with its extension ``_C``, instead of a checkout on the path.
    """

    torch: str
    torchvision: str
    compiled: bool

    def __str__(self) -> str:
        detectron2 = f"{DETECTRON2_COMMIT[:7]}, {'with `_C`' if self.compiled else 'pure Python'}"
        return f"| {platform.python_version_tuple()[0]}.{platform.python_version_tuple()[1]} | {self.torch} | " + (
            f"{self.torchvision} | {detectron2} |"
        )


ROWS = {
    "newest": Row("2.15.0", "0.29.2", compiled=True),
    "newest-pure": Row("2.15.0", "0.29.2", compiled=False),
    "oldest": Row("2.4.1", "0.19.1", compiled=True),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--row", action="append", choices=ROWS, help="which; repeat (default all)")
    parser.add_argument("--folder", type=Path, default=ROOT / ".matrix", help="of the environments (default .matrix)")
    parser.add_argument("tests", nargs="*", help="arguments for pytest; the table is filled only without any")
    return parser.parse_args()


def run(*command: str | Path) -> None:
    print("==", *command, flush=True)
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)


def install(row: Row, folder: Path) -> Path:
    """An environment with a row's versions; its Python."""
    python = folder / "bin/python"
    if (folder / "ready").exists():
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = (python, "-m", "pip", "install", "-q")
    run(*pip, f"torch=={row.torch}", f"torchvision=={row.torchvision}", "setuptools<81", "wheel")
    if row.compiled:
        run(*pip, "--no-build-isolation", f"git+{REPOSITORY}@{DETECTRON2_COMMIT}")
    else:
        checkout = folder / "detectron2"
        run("git", "clone", "-q", REPOSITORY, checkout)
        run("git", "-C", checkout, "checkout", "-q", DETECTRON2_COMMIT)
        (checkout / "detectron2/model_zoo/configs").symlink_to(checkout / "configs")  # as its setup.py does
        run(*pip, *NEEDED_BY_DETECTRON2)
        (next(folder.glob("lib/python*/site-packages")) / "detectron2.pth").write_text(f"{checkout}\n")
    run(*pip, "--no-build-isolation", "-e", ".[dev]", f"torch=={row.torch}", f"torchvision=={row.torchvision}")
    (folder / "ready").touch()
    return python


def test(python: Path, arguments: Sequence[str]) -> tuple[bool, str]:
    """Run the tests; whether all passed, and pytest's count of them."""
    command = [str(python), "-m", "pytest", "-n", "auto", "--dist", "loadfile", *arguments]
    print("==", *command, flush=True)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "CI": "1"})
    assert process.stdout is not None
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        if SUMMARY.search(line):
            last = line
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", last)
    return process.wait() == 0, ", ".join(counts) or "none ran"


def fill(row: Row, result: str) -> None:
    """Put a result into the table, instead of that row's last one."""
    text = TABLE.read_text()
    before, _, after = text.partition(HEADER)
    lines, _, after = after.partition("\n\n")
    others = [line for line in lines.splitlines() if not line.startswith(str(row))]
    rows = sorted([*others, f"{row} {result} |"], key=_version, reverse=True)
    with atomic_path(TABLE) as temporary:
        temporary.write_text(before + HEADER + "\n".join(rows) + "\n\n" + after)


def _version(line: str) -> list[int]:
    return [int(part) for part in line.split("|")[2].strip().split(".")]


def main() -> None:
    args = parse_args()
    failed = []
    for name in args.row or ROWS:
        row = ROWS[name]
        good, result = test(install(row, args.folder / name), args.tests)
        print(f"{row} {result} |", flush=True)
        if not good:
            failed.append(name)
        if not args.tests:
            fill(row, result)
    if failed:
        sys.exit(f"matrix.py: tests failed with {', '.join(failed)}")


if __name__ == "__main__":
    main()
