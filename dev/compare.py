#!/usr/bin/env python
"""Train variants of a config on one dataset with several seeds each, and compare their AP, time and pictures."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import shlex
import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meinst_d2.commands import require_positive

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  dev/compare.py --variant 'published=' --variant 'deviation=MODEL.MEINST.MASK_LOSS_WEIGHTS deviation'
  dev/compare.py --seeds 0 --variant 'MEInst=' --variant 'RetinaNet=@configs/demo/shapes_retinanet.yaml' \\
      --variant 'Mask R-CNN=@configs/demo/shapes_mask_rcnn.yaml' \\
      --variant 'Mask R-CNN, p2=@configs/demo/shapes_mask_rcnn_p2.yaml'
  dev/compare.py --size 256 --sides 70 240 --variant '28=' \\
      --variant '56=MODEL.MEINST.MASK_SIZE 56 MODEL.MEINST.DIM_MASK 100'
  dev/compare.py --coco-dataset mine_train=mine/train.json:mine/images --train mine_train \\
      --coco-dataset mine_val=mine/val.json:mine/images --val mine_val --size 320 \\
      --variant 'MEInst=' --variant 'Mask R-CNN=@configs/demo/shapes_mask_rcnn.yaml' SOLVER.CHECKPOINT_PERIOD 500

The same command resumes a comparison that was interrupted. Only the variants and seeds that are new are trained.
"""
METRICS = {
    "mask AP": ("segm", "AP"),
    "AP50": ("segm", "AP50"),
    "AP75": ("segm", "AP75"),
    "APs": ("segm", "APs"),
    "APm": ("segm", "APm"),
    "APl": ("segm", "APl"),
    "box AP": ("bbox", "AP"),
}
TIMES = ("train min", "ms/image", "ms ratio")
Run = dict[str, Any]
"""What is known of a variant with a seed; a part of the summary."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    form = "NAME=[@CONFIG] [KEY VALUE ...]"
    what = "a row of the comparison: overrides of the config, or of another one; repeat; ratios are to the first"
    add("--variant", action="append", required=True, metavar=form, help=what)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of every variant (default 0 1 2)")
    add("--config-file", default=str(ROOT / "configs/demo/shapes.yaml"), help="what all variants share")
    add("--iterations", type=int, help="SOLVER.MAX_ITER (default: the config's)")
    what = "shorter side of the images in pixels (default: 160 for generated shapes, else the config's)"
    add("--size", type=int, help=what)
    add("--timed-images", type=int, default=50, metavar="N", help="validation images to time (default 50)")
    add("--drawn-images", type=int, default=6, metavar="N", help="validation images to draw (default 6)")
    add("--output", type=Path, default=Path("output/compare"), help="folder (default output/compare)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides of all variants")
    add = parser.add_argument_group("a registered dataset").add_argument
    form = "NAME=ANNOTATIONS.json:IMAGES"
    add("--coco-dataset", action="append", default=[], metavar=form, help="register one in COCO's format; repeat")
    add("--train", metavar="NAME", help="to train on (default: generated shapes)")
    add("--val", metavar="NAME", help="to evaluate on")
    add = parser.add_argument_group("generated shapes").add_argument
    add("--train-images", type=int, default=3000, help="generated for training (default 3000)")
    add("--val-images", type=int, default=100, help="held out for evaluation (default 100)")
    add("--sides", type=float, nargs=2, default=(20, 96), metavar=("MIN", "MAX"), help="of the objects, in pixels")
    args = parser.parse_args(argv)
    require_positive(parser, args, "iterations", "size", "timed_images", "drawn_images", "train_images", "val_images")
    if bool(args.train) != bool(args.val) or (args.coco_dataset and not args.train):
        parser.error("a registered dataset needs both --train NAME and --val NAME")
    for name in ("train_images", "val_images", "sides"):
        if args.train and vars(args)[name] != parser.get_default(name):
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} is of generated shapes: leave it out, or leave out --train and --val")
    args.variants = dict(variant.partition("=")[::2] for variant in args.variant)
    if "" in args.variants or not all("=" in variant for variant in args.variant):
        parser.error("--variant must be NAME=, followed by overrides or nothing")
    if len(args.variants) < len(args.variant):
        parser.error("two variants have the same name")
    return args


def prepare_data(args: argparse.Namespace) -> dict[str, Any]:
    """Register the datasets, generated where none are named, as ``args.train`` and ``args.val``.

    Returns:
        What the data is: the same for the same images and annotations.

    Raises:
        ValueError, OSError: a dataset is not there, or the output folder has runs on other data.
    """
    from meinst_d2.data.datasets import register_coco, register_shapes, require_dataset
    from meinst_d2.data.shapes import ShapesConfig, generate

    for dataset in args.coco_dataset:
        register_coco(dataset)
    if args.train:
        for name in (args.train, args.val):
            require_dataset(name)
        about: dict[str, Any] = {split: describe(getattr(args, split)) for split in ("train", "val")}
        claim(args.output / "data.json", about)
        return about
    args.size = args.size or 160
    looks = ShapesConfig(height=args.size, width=args.size, min_side=args.sides[0], max_side=args.sides[1])
    images = {"train": args.train_images, "val": args.val_images}
    about = {**images, "shapes": dataclasses.asdict(looks)}
    claim(args.output / "data.json", about)
    shapes = args.output / "shapes"
    if not (shapes / "annotations" / "instances_val.json").is_file():  # which is written last
        generate(shapes, images, looks, workers=os.cpu_count() or 1)
    register_shapes(shapes)
    args.train, args.val = "shapes_train", "shapes_val"
    return about


def describe(dataset: str) -> dict[str, Any]:
    """The name of a registered dataset and its annotation file, which a checksum tells from another version."""
    from detectron2.data import MetadataCatalog

    file = MetadataCatalog.get(dataset).get("json_file")
    return {
        "name": dataset,
        "annotations": file,
        "sha256": file and hashlib.sha256(Path(file).read_bytes()).hexdigest(),
    }


def claim(path: Path, about: dict[str, Any]) -> None:
    """Keep what the data of an output folder is; runs and components there are of no other."""
    if path.is_file() and json.loads(path.read_text()) != about:
        raise ValueError(f"{path.parent} has runs on other data (see {path}): choose another --output")
    write_json(path, about)


def write_json(path: Path, content: Any) -> None:
    from meinst_d2.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def config_of(args: argparse.Namespace, variant: str, seed: int) -> Any:
    """The config of a run, with components fitted to the training data as it asks for them."""
    import runs

    from meinst_d2.commands.train import fit_options
    from meinst_d2.data.datasets import class_names

    opts = shlex.split(args.variants[variant])
    config_file = opts.pop(0)[1:] if opts and opts[0].startswith("@") else args.config_file
    shared = ["OUTPUT_DIR", str(args.output / variant / f"seed_{seed}"), "SEED", str(seed)]
    shared += ["DATASETS.TRAIN", repr((args.train,)), "DATASETS.TEST", repr((args.val,))]
    if args.size:
        shared += ["INPUT.MIN_SIZE_TRAIN", f"({args.size},)", "INPUT.MIN_SIZE_TEST", str(args.size)]
    if args.iterations:
        shared += ["SOLVER.MAX_ITER", str(args.iterations)]
    cfg = runs.load_config(config_file, [*shared, *args.opts, *opts])
    names = class_names(args.train)
    if names:  # the file may count the classes of another dataset
        for node in ("MEINST", "RETINANET" if runs.is_ours(cfg) else "ROI_HEADS"):
            cfg.MODEL[node].NUM_CLASSES = len(names)
    options = "_".join(fit_options(cfg)).replace("--", "")
    components = args.output / f"components_{options}.npz"
    if not components.is_file():
        runs.fit(cfg, args.train, components)
    cfg.MODEL.MEINST.COMPONENTS = str(components)
    return cfg


def finished(cfg: Any) -> Run:
    """A run that is complete: that of an earlier call, one resumed from there, or a new one; with its ``losses.png``.

    Returns:
        ``config``; ``results`` of the evaluation; ``seconds`` of training, None where an earlier version of this script
        did not record them; ``weights``, the file.
    """
    import runs

    from meinst_d2.checkpoint.resume import TAG

    folder = Path(cfg.OUTPUT_DIR)
    file, weights, settings = folder / "results.json", folder / "model_final.pth", cfg.dump()
    run = json.loads(file.read_text()) if file.is_file() else {}
    same = run.get("config") == settings
    if not (same and "results" in run and weights.is_file()):
        resume = same and "results" not in run
        if not resume:
            (folder / TAG).unlink(missing_ok=True)  # before the new config is written: it must never resume from these
        write_json(file, {"config": settings})
        trainer = runs.train(cfg, resume=resume)
        run = {"config": settings, "results": finite(trainer._last_eval_results), "seconds": trainer.clock.seconds}
        write_json(file, run | {"weights": str(weights)})
        runs.draw_losses(folder / "losses.png", folder / "metrics.json")
    return {"seconds": None, "weights": str(weights), **run, "results": finite(run["results"])}


def finite(results: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    """Results with None for NaN, which JSON lacks: the AP of objects that the data does not have."""
    return {
        task: {name: None if value is None or math.isnan(value) else value for name, value in metrics.items()}
        for task, metrics in results.items()
    }


def time_predictions(args: argparse.Namespace, of_seed: Mapping[str, Run], models: Mapping[str, Any]) -> None:
    """Add ``ms_per_image`` and ``ms_ratio``, to the first variant, to the runs of a seed.

    Args:
        args: of the command line.
        of_seed: the runs by variant.
        models: their configs and models.
    """
    import runs

    from meinst_d2.data.datasets import dataset_dicts

    times = runs.time_predictions(models, dataset_dicts(args.val)[: args.timed_images])
    first = next(iter(times.values()))
    for name, run in of_seed.items():
        run["ms_per_image"] = 1000 * statistics.median(times[name])
        run["ms_ratio"] = statistics.median(mine / its for mine, its in zip(times[name], first, strict=True))


def draw(args: argparse.Namespace, models: Mapping[str, Any]) -> Path:
    """The first validation images with objects, through every variant, as ``compare.png``."""
    import runs

    from meinst_d2.data.datasets import dataset_dicts

    records = [record for record in dataset_dicts(args.val) if record.get("annotations")][: args.drawn_images]
    detections = {name: runs.predict(cfg, model, records) for name, (cfg, model) in models.items()}
    path = args.output / "compare.png"
    runs.draw_comparison(path, records, detections, args.val)
    return path


def figures(run: Run) -> dict[str, float | None]:
    """The columns of the table."""
    found = {name: run["results"].get(task, {}).get(metric) for name, (task, metric) in METRICS.items()}
    minutes = None if run["seconds"] is None else run["seconds"] / 60
    return found | dict(zip(TIMES, (minutes, run.get("ms_per_image"), run.get("ms_ratio")), strict=True))


def over_seeds(of_variant: Sequence[Run]) -> dict[str, dict[str, float | None]]:
    """``mean`` and ``std`` of every column; None where a run lacks it, or for the std of one run."""
    columns: dict[str, dict[str, float | None]] = {}
    for name in (*METRICS, *TIMES):
        values = [figures(run)[name] for run in of_variant]
        known = None not in values
        columns[name] = {
            "mean": statistics.mean(values) if known else None,
            "std": statistics.stdev(values) if known and len(values) > 1 else None,
        }
    return columns


def print_table(table: Mapping[str, Sequence[Run]]) -> None:
    """Mean and std over the seeds; a dash where there is none."""
    width = max(map(len, table)) + 2
    print(f"\n{'':{width}}" + "".join(f"{name:>14}" for name in (*METRICS, *TIMES)))
    for variant, of_variant in table.items():
        if not of_variant:
            continue
        cells = []
        for name, column in over_seeds(of_variant).items():
            digits = 2 if name == "ms ratio" else 1
            std = "" if column["std"] is None else f" ± {column['std']:.{digits}f}"
            cells.append("-" if column["mean"] is None else f"{column['mean']:.{digits}f}{std}")
        print(f"{variant:{width}}" + "".join(f"{cell:>14}" for cell in cells))


def write_summary(args: argparse.Namespace, data: Mapping[str, Any], table: Mapping[str, Sequence[Run]]) -> Path:
    """Everything of all runs, and what it was measured on."""
    import torch

    from benchmarks.common import machine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    variants = {
        name: {"overrides": args.variants[name], "over_seeds": over_seeds(of_variant), "runs": list(of_variant)}
        for name, of_variant in table.items()
    }
    content = {"command": sys.argv, "machine": machine(device, torch.get_num_threads()), "data": data}
    path = args.output / "summary.json"
    write_json(path, {**content, "seeds": args.seeds, "variants": variants})
    return path


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    try:
        data = prepare_data(args)
    except (ValueError, OSError) as error:
        sys.exit(f"compare.py: {error}")
    import runs

    table: dict[str, list[Run]] = {variant: [] for variant in args.variants}
    for seed in args.seeds:
        cfgs = {variant: config_of(args, variant, seed) for variant in args.variants}
        for variant, cfg in cfgs.items():
            table[variant].append({"seed": seed, **finished(cfg)})
            print_table(table)
        of_seed = {variant: of_variant[-1] for variant, of_variant in table.items()}
        models = {name: (cfgs[name], runs.load_model(cfgs[name], run["weights"])) for name, run in of_seed.items()}
        time_predictions(args, of_seed, models)
        if seed == args.seeds[0]:
            print(f"\nwrote {draw(args, models)}")
        print_table(table)
        summary = write_summary(args, data, table)
    each = "1 seed" if len(args.seeds) == 1 else f"{len(args.seeds)} seeds"
    print(f"\n{each} each, mean ± std; ms ratio: to {next(iter(table))}, of the same images; wrote {summary}")


if __name__ == "__main__":
    main()
