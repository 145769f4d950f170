#!/usr/bin/env python
"""COCO files: read, then every annotation made a template as meinst fit does, and scanned as meinst check does."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.harness import fuzz, with_file


def instrument() -> None:
    """Import what is fuzzed, watched by the fuzzer."""
    import atheris

    with atheris.instrument_imports(include=["meinst_d2", "json"]):
        import meinst_d2.check.coco_file
        import meinst_d2.data.coco
        import meinst_d2.data.instances  # noqa: F401


def read(path: str) -> None:
    from meinst_d2.check.coco_file import scan
    from meinst_d2.data.coco import read_coco_json
    from meinst_d2.data.instances import make_templates

    with contextlib.redirect_stderr(io.StringIO()):
        scan(path)
    make_templates(read_coco_json(path), 8)


def make_one_input() -> Callable[[bytes], None]:
    return with_file(".json", read)


if __name__ == "__main__":
    instrument()
    fuzz("json", make_one_input())
