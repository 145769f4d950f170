"""Masks of the whole image from templates: bit masks and encodings, against Detectron2 and pycocotools, on the CPU."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import Goal, Row, alternate
from benchmarks.source import find_source

SIZES = ("800x1333", "1080x1920")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--detections", type=int, default=100, help="per image (default 100)")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="HxW", help=f"images (default {' '.join(SIZES)})")


def run(args: argparse.Namespace) -> list[Row]:
    from benchmarks.detections import ObjectPool

    pool = ObjectPool(find_source(args.data))
    rows = []
    for size in args.sizes:
        height, width = _size(size)
        templates, boxes = pool.draw(args.detections, height, width)
        rows += _rows(templates, boxes, height, width, args.rounds)
    return rows


def _size(text: str) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in text.split("x"))
    except ValueError as error:
        raise ValueError(f"--sizes {text}: give HEIGHTxWIDTH, such as 800x1333") from error
    return height, width


def _paste_in_new_memory(templates: Any, boxes: Any, height: int, width: int) -> Any:
    """Without the memory of the image before."""
    from meinst_d2.masks import paste

    kept, paste.KEEP_AT_MOST = paste.KEEP_AT_MOST, 0
    try:
        return paste.paste_masks(templates, boxes, height, width)
    finally:
        paste.KEEP_AT_MOST = kept


def _rows(templates: Any, boxes: Any, height: int, width: int, rounds: int) -> list[Row]:
    import numpy as np
    import pycocotools.mask as mask_util
    from detectron2.layers import paste_masks_in_image

    from meinst_d2.masks import encode_masks, encode_templates, paste_masks

    def encode_whole(masks: Any) -> list[Any]:
        """As Detectron2's COCOEvaluator does."""
        return [mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0] for mask in masks.numpy()]

    masks = paste_masks(templates, boxes, height, width)
    theirs = paste_masks_in_image(templates, boxes, (height, width))
    sides = {
        "paste_masks": lambda: paste_masks(templates, boxes, height, width),
        "detectron2 paste_masks_in_image": lambda: paste_masks_in_image(templates, boxes, (height, width)),
        "encode_templates": lambda: encode_templates(templates, boxes, height, width),
        "detectron2 paste, pycocotools encode": lambda: encode_whole(
            paste_masks_in_image(templates, boxes, (height, width))
        ),
        "encode_masks": lambda: encode_masks(masks.numpy(), boxes.numpy()),
        "pycocotools encode": lambda: encode_whole(masks),
        "in new memory": lambda: _paste_in_new_memory(templates, boxes, height, width),
    }
    ours, baseline, ours_rle, baseline_rle, in_box, whole, in_new_memory = alternate(sides, rounds).values()
    where = f"{len(boxes)} detections, {height} x {width}"
    differing = int((masks != theirs).sum())
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    notes = {
        "pixels that differ": f"{differing} of {masks.numel():,}",
        "boxes on average": f"{areas.mean() / (height * width):.1%} of the image",
    }
    expected = encode_whole(masks)

    def differ(name: str) -> dict[str, int]:
        pairs = zip(sides[name](), expected, strict=True)
        return {"encodings that differ": sum(a != b for a, b in pairs)}

    faster = Row("", ours, baseline).ratio >= 10
    goal = Goal(">= 10x, <= 1e-5 differ", faster and differing <= 1e-5 * masks.numel())
    return [
        Row(f"paste {where}", ours, baseline, goal=goal, notes=notes),
        Row(f"paste in the memory of the image before, {where}", ours, in_new_memory),
        Row(f"templates to RLE, {where}", ours_rle, baseline_rle, notes=differ("encode_templates")),
        Row(f"bit masks to RLE, {where}", in_box, whole, notes=differ("encode_masks")),
    ]
