#!/usr/bin/env python
"""Watch MEInst learn: generate shapes, fit components, train a small model on the CPU, evaluate, draw.

The model refines its masks (docs/better-masks.md); what they are without that is evaluated and drawn, too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """example:
  dev/demo_shapes.py --output output/demo
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder (default output/demo)")
    parser.add_argument("--config-file", default=str(ROOT / "configs/demo/shapes_quick.yaml"), help="what to train")
    parser.add_argument("--train-images", type=int, default=3000, help="generated for training (default 3000)")
    parser.add_argument("--val-images", type=int, default=100, help="held out for evaluation (default 100)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides, KEY VALUE ...")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

    # Imported here so that --help answers at once.
    import runs

    from meinst_d2.data.datasets import register_shapes
    from meinst_d2.data.shapes import generate

    shapes, components = args.output / "shapes", args.output / "components.npz"
    generate(shapes, {"train": args.train_images, "val": args.val_images}, workers=os.cpu_count() or 1)
    register_shapes(shapes)
    overrides = ["OUTPUT_DIR", str(args.output), "MODEL.MEINST.COMPONENTS", str(components), *args.opts]
    cfg = runs.load_config(args.config_file, overrides)
    runs.fit(cfg, "shapes_train", components)
    report(runs.train(cfg), args.output, start)


def report(trainer: Any, output: Path, start: float) -> None:
    """Pictures, and a summary on the console."""
    from runs import draw_losses, encoding_ceiling, predict_dataset

    from meinst_d2.data.datasets import dataset_dicts
    from meinst_d2.visualization.drawing import draw_sheet

    draw_losses(output / "losses.png", output / "metrics.json")
    model = trainer.model.eval()
    records = dataset_dicts("shapes_val")[:15]
    draw_sheet(output / "detections.png", records, predict_dataset(trainer.cfg, model, "shapes_val", 15), "shapes_val")

    results, generator = trainer._last_eval_results, model.proposal_generator
    code: dict[str, Any] = {}
    if generator.refinement is not None:
        generator.refinement = None
        cfg = trainer.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(output / "code")  # beside the results of the refined masks
        code = trainer.test(cfg, model)["segm"]
        found = predict_dataset(trainer.cfg, model, "shapes_val", 15)
        draw_sheet(output / "detections_code.png", records, found, "shapes_val")
    ceiling = encoding_ceiling(generator.mask_encoder, "shapes_val")
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{len(dataset_dicts('shapes_val'))} held-out images, {minutes:.1f} minutes in all")
    print(f"{'':28}{'AP':>6}{'AP50':>7}{'AP75':>7}")
    for name, row in (
        ("boxes", results["bbox"]),
        ("masks", results["segm"]),
        *([("masks of the codes alone", code)] if code else []),
        ("masks, ceiling of encoding", ceiling["segm"]),
    ):
        print(f"{name:28}{row['AP']:6.1f}{row['AP50']:7.1f}{row['AP75']:7.1f}")
    per_class = {name[3:]: ap for name, ap in results["segm"].items() if name.startswith("AP-")}
    print("mask AP by category: " + ", ".join(f"{name} {ap:.1f}" for name, ap in per_class.items()))
    summary = {"bbox": results["bbox"], "segm": results["segm"], "code": code, "ceiling": ceiling["segm"]}
    summary["minutes"] = minutes
    (output / "summary.json").write_text(json.dumps(summary, indent=1))
    pictures = "detections.png, " + ("detections_code.png, " if code else "") + "losses.png, components.png"
    print(f"look at {output}/{pictures}; the model is {output}/model_final.pth")


if __name__ == "__main__":
    main()
