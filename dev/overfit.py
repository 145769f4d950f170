#!/usr/bin/env python
"""Overfit a small model to a few real images: proof that targets, losses, decoding and pasting agree."""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """example (with COCO, or a part of it, below $DETECTRON2_DATASETS):
  dev/overfit.py --dataset coco_2017_train
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="coco_2017_train", help="a dataset with a COCO file")
    parser.add_argument("--images", type=int, default=8, help="how many, the first by id (default 8)")
    parser.add_argument("--min-instances", type=int, default=3, help="least non-crowd instances (default 3)")
    parser.add_argument("--output", type=Path, default=Path("output/overfit"), help="folder (default output/overfit)")
    parser.add_argument("--config-file", default=str(ROOT / "configs/quick/overfit.yaml"), help="what to train")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides, KEY VALUE ...")
    return parser.parse_args()


def subset(content: dict[str, Any], num_images: int, min_instances: int) -> dict[str, Any]:
    """The first images by id of a COCO file that have enough instances, with their annotations."""
    count: dict[int, int] = {}
    for annotation in content["annotations"]:
        count[annotation["image_id"]] = count.get(annotation["image_id"], 0) + (not annotation.get("iscrowd", 0))
    chosen = sorted(image for image, instances in count.items() if instances >= min_instances)[:num_images]
    return {
        "images": [image for image in content["images"] if image["id"] in chosen],
        "annotations": [annotation for annotation in content["annotations"] if annotation["image_id"] in chosen],
        "categories": content["categories"],
    }


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")

    # Imported here so that --help answers at once.
    import runs
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    from meinst_d2.data.datasets import dataset_dicts, require_dataset
    from meinst_d2.visualization.drawing import draw_sheet

    require_dataset(args.dataset)
    source = MetadataCatalog.get(args.dataset)
    args.output.mkdir(parents=True, exist_ok=True)
    annotations = args.output / "instances.json"
    content = json.loads(Path(source.json_file).read_text())
    annotations.write_text(json.dumps(subset(content, args.images, args.min_instances)))
    register_coco_instances("overfit", {"thing_classes": source.thing_classes}, str(annotations), source.image_root)

    components = args.output / "components.npz"
    overrides = ["OUTPUT_DIR", str(args.output), "MODEL.MEINST.COMPONENTS", str(components), *args.opts]
    cfg = runs.load_config(args.config_file, overrides)
    runs.fit(cfg, args.dataset, components)
    trainer = runs.train(cfg)

    runs.draw_losses(args.output / "losses.png", args.output / "metrics.json")
    records = dataset_dicts("overfit")
    detections = runs.predict_dataset(trainer.cfg, trainer.model.eval(), "overfit")
    draw_sheet(args.output / "detections.png", records, detections, "overfit", columns=2, width=420)
    results = trainer._last_eval_results
    minutes = (time.perf_counter() - start) / 60
    print(f"\n{len(records)} images, seen again and again; {minutes:.1f} minutes on {os.cpu_count()} cores")
    for task, name in (("bbox", "boxes"), ("segm", "masks")):
        print(f"{name}: AP {results[task]['AP']:.1f}, AP50 {results[task]['AP50']:.1f}")
    print(f"look at {args.output}/detections.png and losses.png")


if __name__ == "__main__":
    main()
