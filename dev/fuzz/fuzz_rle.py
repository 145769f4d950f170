#!/usr/bin/env python
"""Run-length encodings and polygons: runs, the decoded mask and the crop agree with each other and with pycocotools."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.harness import fuzz

MOST_PIXELS = 2**16


def instrument() -> None:
    """Import what is fuzzed, watched by the fuzzer."""
    from atheris.import_hook import HookManager

    # Branches only: what atheris does to see comparisons never frees the arrays that numpy's comparisons make.
    with HookManager({"meinst_d2"}, set(), enable_loader_override=True, trace_dataflow=False):
        import meinst_d2.data.instances
        import meinst_d2.masks.rasterize
        import meinst_d2.masks.rle  # noqa: F401


def one_input(data: bytes) -> None:
    """Height and width, four sides of a box, what follows, and that: counts, JSON, or runs that add up."""
    import numpy as np

    from meinst_d2.data.annotations import InstanceAnnotation
    from meinst_d2.data.instances import make_templates

    if len(data) < 10:
        return
    height, width = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    x0, y0, x1, y1 = np.frombuffer(data[4:8], np.int8).astype(float).tolist()
    try:
        content = content_of(data[8] % 4, data[9:], height, width)
    except (ValueError, RecursionError):
        return
    polygons = isinstance(content, list) and any(isinstance(part, list) for part in content)
    segmentation = content if polygons else {"size": [height, width], "counts": content}
    annotation = InstanceAnnotation(segmentation, (x0, y0, x1, y1), (height, width), 0, False)
    templates = make_templates([annotation], 7)
    assert len(templates.masks) + templates.skipped.total() == 1
    if not polygons and height * width <= MOST_PIXELS:
        compare(segmentation, height, width, (x0, y0, x1, y1))


def content_of(kind: int, data: bytes, height: int, width: int) -> Any:
    """Compressed counts, JSON (counts or polygons), or runs from pairs of bytes and what is left of the pixels.

    Raises:
        ValueError, RecursionError: it is no JSON, or the runs are too long.
    """
    import numpy as np
    import pycocotools.mask as mask_util

    if kind < 2:
        return json.loads(data) if kind else data
    runs = np.frombuffer(data[: len(data) // 2 * 2], "<u2").astype(np.int64)
    rest = height * width - int(runs.sum())
    if rest < 0:
        raise ValueError("more runs than pixels")
    counts = [*runs.tolist(), rest]
    if kind == 2:
        return counts
    return mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]


def compare(rle: dict[str, Any], height: int, width: int, box: tuple[float, float, float, float]) -> None:
    """What is accepted means the same to all."""
    import numpy as np
    import pycocotools.mask as mask_util

    from meinst_d2.masks.rasterize import crop_bitmask
    from meinst_d2.masks.rle import crop_rle, decode_rle

    try:
        mask = decode_rle(rle, height, width)
    except ValueError:
        return
    assert mask.shape == (height, width)
    if height and width:
        assert (crop_rle(rle, height, width, box, 7) == crop_bitmask(mask, box, 7)).all()
        theirs = mask_util.frPyObjects(rle, height, width) if isinstance(rle["counts"], list) else rle
        assert np.array_equal(mask_util.decode(theirs), mask)


def make_one_input() -> Callable[[bytes], None]:
    return one_input


if __name__ == "__main__":
    instrument()
    fuzz("rle", make_one_input())
