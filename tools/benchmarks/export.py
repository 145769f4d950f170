#!/usr/bin/env python
"""Exports of R-50 with random weights that behave like trained ones: the check on real images, and the time."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
EXAMPLES = """example:
  tools/benchmarks/export.py --config-file configs/MEInst_R_50_1x.yaml --image a.jpg --image b.jpg
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=str(ROOT / "configs/MEInst_R_50_1x.yaml"))
    parser.add_argument("--image", action="append", required=True, metavar="FILE", help="may be repeated")
    parser.add_argument("--min-size", type=int, default=800, help="shortest side of the images (default 800)")
    parser.add_argument("--rounds", type=int, default=3, help="of each of the two, in turn (default 3)")
    parser.add_argument("--threads", type=int, default=0, help="of both (default: all cores)")
    return parser.parse_args()


def make_source(args: argparse.Namespace):  # type: ignore[no-untyped-def]
    import torch
    from detectron2.config import get_cfg
    from detectron2.data import transforms as T
    from detectron2.modeling import build_model

    import meinst_d2.modeling  # noqa: F401  registers the model
    from benchmarks.models import components, normalise
    from meinst_d2 import add_meinst_config, export
    from meinst_d2.model_zoo.trained import TrainedModel

    cfg = get_cfg()
    add_meinst_config(cfg)
    cfg.merge_from_file(args.config_file)
    meinst = cfg.MODEL.MEINST
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", args.min_size])
    meinst.COMPONENTS = str(components(meinst.MASK_SIZE, meinst.DIM_MASK))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    names = [str(i) for i in range(meinst.NUM_CLASSES)]
    source = export.make_source(TrainedModel(model, resize, cfg.INPUT.FORMAT, names, ""))
    batches = export.check_batches(args.image, source.metadata)
    normalise(model, [{"image": batches[0][0]}])
    with torch.no_grad():  # enough pairs above the threshold, and boxes of many sizes
        model.proposal_generator.head.cls_logits.bias.fill_(-3.2)
        model.proposal_generator.head.bbox_pred.bias.fill_(4.0)
    return source, batches


def main() -> None:
    args = parse_args()
    import torch

    threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    import onnxruntime

    from meinst_d2.export import export_model
    from meinst_d2.export.check import expected_detections, pad_batch

    source, batches = make_source(args)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        start = time.perf_counter()
        print(export_model(source, path, batches).table())
        print(f"exported and checked in {time.perf_counter() - start:.0f} s, {path.stat().st_size / 1e6:.1f} MB")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images, sizes = pad_batch(batches[0], int(source.metadata["size_divisibility"]))
    seconds: dict[str, list[float]] = {"PyTorch": [], "onnxruntime": []}
    for _ in range(args.rounds):
        start = time.perf_counter()
        expected_detections(source.model, batches[0])
        middle = time.perf_counter()
        session.run(None, {"images": images, "image_sizes": sizes})
        seconds["PyTorch"].append(middle - start)
        seconds["onnxruntime"].append(time.perf_counter() - middle)
    pytorch, onnx = (statistics.median(values) for values in seconds.values())
    print(f"one image of {sizes[0].tolist()}, {threads} threads, median of {args.rounds}: PyTorch {pytorch:.2f} s,")
    print(f"onnxruntime {onnx:.2f} s, ratio {onnx / pytorch:.2f}")


if __name__ == "__main__":
    main()
