"""Exported models: onnxruntime against PyTorch on the same image, and how far their detections are apart.

Models of R-50 have random weights that behave like trained ones (see benchmarks/models.py), with biases that let enough
pairs above the score threshold and make boxes of many sizes.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, Row, alternate
from benchmarks.models import normalise, our_config
from benchmarks.source import find_source

VARIANTS = {"plain": ("MODEL.MEINST.DEFORM_CONV", "none"), "deformable": ("MODEL.MEINST.DEFORM_CONV", "last")}
CLASS_BIAS, BOX_BIAS = -3.2, 4.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short-edge", type=int, default=800, help="of the network's input in pixels (default 800)")
    parser.add_argument("--images", type=int, default=2, help="the check compares this many (default 2)")
    parser.add_argument("--head", choices=sorted(VARIANTS), help="one of them (default both)")
    parser.set_defaults(rounds=3, precision="float32")


def run(args: argparse.Namespace) -> list[Row]:
    if args.device != "cpu":
        raise ValueError(f"--device {args.device}: exports are measured on the CPU, onnxruntime's default package")
    source = find_source(args.data)
    images = [str(source.images / record["file_name"]) for record in source.load()["images"][: args.images]]
    return [_row(name, images, args) for name in ([args.head] if args.head else VARIANTS)]


def _row(variant: str, images: list[str], args: argparse.Namespace) -> Row:
    import onnxruntime

    from meinst_d2 import export
    from meinst_d2.export.write import expected_detections, pad_batch

    source, batches = _exportable(variant, images, args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        start = time.perf_counter()
        result = export.export_model(source, path, batches)
        seconds, megabytes = time.perf_counter() - start, path.stat().st_size / 1e6
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pixels, sizes = pad_batch(batches[0], int(source.metadata["size_divisibility"]))
    inputs = {"images": pixels, "image_sizes": sizes}
    sides = alternate(
        {
            "onnxruntime": lambda: session.run(None, inputs),
            "PyTorch": lambda: expected_detections(source.model, batches[0]),
        },
        args.rounds,
    )
    height, width = sizes[0]
    row = Row(f"R-50, {variant}, batch {len(sizes)} of {height} x {width}", *sides.values())
    notes = {f"largest difference in {name}": f"{value:.1e}" for name, value in result.differences.items()}
    notes |= {"detections compared": result.detections}
    notes |= {"exported and checked in": f"{seconds:.0f} s", "file": f"{megabytes:.0f} MB"}
    return dataclasses.replace(row, goal=Goal("same detections", True), notes=notes)


def _exportable(variant: str, images: list[str], args: argparse.Namespace) -> tuple[Any, Any]:
    """The model with what an export needs to know about it, and the batches that it is checked on."""
    import torch
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.modeling import build_model

    from meinst_d2 import export
    from meinst_d2.model_zoo.trained import TrainedModel

    cfg = our_config(args, *VARIANTS[variant])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    resize = ResizeShortestEdge(args.short_edge, 1333 * args.short_edge // 800)
    names = [str(number) for number in range(cfg.MODEL.MEINST.NUM_CLASSES)]
    source = export.make_source(TrainedModel(model, resize, cfg.INPUT.FORMAT, names, ""))
    batches = export.check_batches(images, source.metadata)
    normalise(model, [{"image": batches[0][0]}])
    head = model.proposal_generator.head
    with torch.no_grad():
        head.cls_logits.bias.fill_(CLASS_BIAS)
        head.bbox_pred.bias.fill_(BOX_BIAS)
    return source, batches
