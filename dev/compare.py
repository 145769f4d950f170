#!/usr/bin/env python
"""Train variants of a config on the generated shapes with several seeds each, and compare their AP."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """examples:
  dev/compare.py --variant 'published=' --variant 'deviation=MODEL.MEINST.MASK_LOSS_WEIGHTS deviation'
  dev/compare.py --seeds 0 --variant 'FCOS=' --variant 'RetinaNet=@configs/demo/shapes_retinanet.yaml'
  dev/compare.py --size 256 --sides 70 240 --variant '28=' \\
      --variant '56=MODEL.MEINST.MASK_SIZE 56 MODEL.MEINST.DIM_MASK 100'
"""
COLUMNS = (("segm", "AP"), ("segm", "AP50"), ("segm", "AP75"), ("segm", "APl"), ("bbox", "AP"))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variant",
        action="append",
        required=True,
        metavar="NAME=[@CONFIG] [KEY VALUE ...]",
        help="a row of the comparison: overrides of the config, or of another one; repeat",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of every variant (default 0 1 2)")
    parser.add_argument("--config-file", default=str(ROOT / "configs/demo/shapes.yaml"), help="what all variants share")
    parser.add_argument("--iterations", type=int, help="SOLVER.MAX_ITER (default: the config's)")
    parser.add_argument("--train-images", type=int, default=3000, help="generated for training (default 3000)")
    parser.add_argument("--val-images", type=int, default=100, help="held out for evaluation (default 100)")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels (default 160)")
    parser.add_argument("--sides", type=float, nargs=2, default=(20, 96), metavar=("MIN", "MAX"), help="of the objects")
    parser.add_argument("--output", type=Path, default=Path("output/compare"), help="folder (default output/compare)")
    return parser.parse_args()


def train(args: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """The results of one run; those of an earlier call, where the run is complete."""
    import runs

    from meinst_d2.commands.train import fit_options

    name, _, overrides = variant.partition("=")
    opts = shlex.split(overrides)
    folder = args.output / name / f"seed_{seed}"
    config_file = opts.pop(0)[1:] if opts and opts[0].startswith("@") else args.config_file
    opts = ["OUTPUT_DIR", str(folder), "SEED", str(seed), *opts]
    opts += ["INPUT.MIN_SIZE_TRAIN", f"({args.size},)", "INPUT.MIN_SIZE_TEST", str(args.size)]
    if args.iterations:
        opts += ["SOLVER.MAX_ITER", str(args.iterations)]
    cfg = runs.load_config(config_file, opts)
    options = "_".join(fit_options(cfg)).replace("--", "")
    components = args.output / f"components_{options}.npz"
    if not components.is_file():
        runs.fit(cfg, "shapes_train", components)
    cfg.MODEL.MEINST.COMPONENTS = str(components)
    results, settings = folder / "results.json", cfg.dump()
    if results.is_file():
        saved = json.loads(results.read_text())
        if saved["config"] == settings:
            return saved["results"]
    trainer = runs.train(cfg)
    results.write_text(json.dumps({"config": settings, "results": trainer._last_eval_results}))
    return trainer._last_eval_results


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """Mean and std over the seeds."""
    header = "".join(f"{f'{task} {metric}':>16}" for task, metric in COLUMNS)
    print(f"\n{'':20}{header}")
    for name, runs in results.items():
        cells = []
        for task, metric in COLUMNS:
            values = [run[task][metric] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        print(f"{name:20}" + "".join(f"{cell:>16}" for cell in cells))


def main() -> None:
    args = parse_args()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

    # Imported here so that --help answers at once.
    from meinst_d2.data.datasets import register_shapes
    from meinst_d2.data.shapes import ShapesConfig, generate

    shapes = args.output / "shapes"
    images = {"train": args.train_images, "val": args.val_images}
    looks = ShapesConfig(height=args.size, width=args.size, min_side=args.sides[0], max_side=args.sides[1])
    generate(shapes, images, looks, workers=os.cpu_count() or 1)
    register_shapes(shapes)

    results: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for variant in args.variant:
            results.setdefault(variant.partition("=")[0], []).append(train(args, variant, seed))
            print_table(results)
    summary = args.output / "summary.json"
    summary.write_text(json.dumps(results, indent=1))
    each = "1 seed" if len(args.seeds) == 1 else f"{len(args.seeds)} seeds"
    print(f"\n{each} each, mean ± std; wrote {summary}")


if __name__ == "__main__":
    main()
