"""Evaluate a model: accuracy and speed, at the config's test scale or at several (paper, table 7)."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meinst_d2.commands import make_parser, reporting, require_positive

EXAMPLES = """examples (the second gives the three rows of table 7):
  meinst evaluate --config-file output/mine/config.yaml MODEL.WEIGHTS output/mine/model_final.pth
  meinst evaluate --config-file configs/paper/table5_plain.yaml --scales 400,600,800 \\
      MODEL.WEIGHTS output/paper/table5_plain/model_final.pth

A scale is the shorter side of the network's input, as INPUT.MIN_SIZE_TEST. The longer side is capped at
INPUT.MAX_SIZE_TEST (1333) at every scale, unless --max-size says otherwise. Images per second are the model's, one
image at a time, from the loaded image to pasted masks; waiting for the loader is printed apart.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("evaluate", __doc__, EXAMPLES)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the model")
    what = "shorter sides in pixels, such as 400,600,800 (default: INPUT.MIN_SIZE_TEST alone)"
    parser.add_argument("--scales", type=scale_list, metavar="N,N,...", help=what)
    what = "cap of the longer side (default INPUT.MAX_SIZE_TEST)"
    parser.add_argument("--max-size", type=int, metavar="N", help=what)
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate the first N images only")
    folder = Path("output/scales")
    parser.add_argument("--output", type=Path, default=folder, metavar="DIR", help=f"folder (default {folder})")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: MODEL.WEIGHTS FILE ...")
    args = parser.parse_args(argv)
    require_positive(parser, args, "limit", "max_size")
    return args


def scale_list(text: str) -> tuple[int, ...]:
    """Pixels between commas."""
    try:
        scales = tuple(int(part) for part in text.split(","))
    except ValueError:
        scales = (0,)
    if min(scales) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of pixels such as 400,600,800")
    return scales


def print_table(results: Sequence[dict[str, Any]]) -> None:
    names = {task: name for task, name in (("bbox", "box"), ("segm", "mask")) if task in results[0]}
    print(f"\n{'':>6}" + "".join(f"  {name:>19}" for name in names.values()) + f"{'model':>19}{'loading':>10}")
    print(f"{'scale':>6}" + f"  {'AP':>5}{'AP50':>7}{'AP75':>7}" * len(names) + f"{'images/s':>11}{'ms':>8}{'ms':>10}")
    for result in results:
        rows = [result[task] for task in names]
        figures = "".join(f"  {row['AP']:5.1f}{row['AP50']:7.1f}{row['AP75']:7.1f}" for row in rows)
        model, loading = 1000 * result["model_seconds_per_image"], 1000 * result["loading_seconds_per_image"]
        print(f"{result['scale']:6d}{figures}{result['images_per_second']:11.1f}{model:8.1f}{loading:10.1f}")


@reporting("evaluate", KeyError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported here so that --help answers at once.
    import torch
    from detectron2.data import MetadataCatalog
    from detectron2.modeling import build_model

    from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer, info_of
    from meinst_d2.commands.train import load_config
    from meinst_d2.engine import check_before_start
    from meinst_d2.evaluation.average_precision import without_nan
    from meinst_d2.evaluation.coco import evaluate_at_scale
    from meinst_d2.files import atomic_path

    cfg = load_config(args)
    if not (args.dataset or cfg.DATASETS.TEST):
        raise ValueError("DATASETS.TEST is empty: name a dataset with --dataset")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (dataset,), str(args.output)
    if args.max_size is not None:
        cfg.INPUT.MAX_SIZE_TEST = args.max_size
    cfg.freeze()
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty: give a trained model")
    opened = check_before_start(cfg, eval_only=True, resume=False)
    if args.limit and MetadataCatalog.get(dataset).get("evaluator_type") == "lvis":
        raise ValueError(f"--limit does not work with {dataset}, LVIS's evaluator knows no subsets: leave it out")
    model = build_model(cfg).eval()
    names = info_of(MEInstCheckpointer(model, opened=opened).load(cfg.MODEL.WEIGHTS)).get("class_names")
    scales = args.scales or (cfg.INPUT.MIN_SIZE_TEST,)
    results = [evaluate_at_scale(cfg, model, dataset, scale, class_names=names, limit=args.limit) for scale in scales]
    print_table(results)
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    summary = {
        "config": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "dataset": dataset,
        "device": torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "scales": results,
    }
    with atomic_path(args.output / "scales.json") as temporary:
        temporary.write_text(json.dumps(without_nan(summary), indent=1))
    print(f"\nwrote {args.output / 'scales.json'}")
