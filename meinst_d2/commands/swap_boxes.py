"""Draw a model's masks into the boxes of other detectors, and compare (paper, table 1 and figure 4)."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meinst_d2.commands import make_parser, reporting, require_positive

EXAMPLES = """example (boxes from meinst train --eval-only, which writes inference/coco_instances_results.json):
  meinst swap-boxes --config-file COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml \\
      --boxes FCOS-R-50=output/paper/table1_fcos_r_50/inference/coco_instances_results.json \\
      --boxes FCOS-R-101=output/paper/table1_fcos_r_101/inference/coco_instances_results.json

Box and mask AP count all boxes of a file; the threshold only counts boxes.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("swap-boxes", __doc__, EXAMPLES)
    what = "of a GeneralizedRCNN with a mask head: a file, or a name in Detectron2's model zoo"
    parser.add_argument("--config-file", required=True, metavar="FILE", help=what)
    what = "COCO result file of a detector; repeat for more"
    parser.add_argument("--boxes", action="append", default=[], metavar="NAME=FILE", help=what)
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    what = "count boxes that score above it (default 0.05)"
    parser.add_argument("--score-threshold", type=float, default=0.05, help=what)
    parser.add_argument("--limit", type=int, metavar="N", help="evaluate the first N images only")
    folder = Path("output/swap_boxes")
    parser.add_argument("--output", type=Path, default=folder, metavar="DIR", help=f"default {folder}")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: MODEL.WEIGHTS FILE ...")
    args = parser.parse_args(argv)
    require_positive(parser, args, "limit")
    files: dict[str, str] = {}
    for source in args.boxes:
        name, equals, file = source.partition("=")
        if not (name and equals and file) or os.sep in name:
            parser.error(f"--boxes {source} is not NAME=FILE with a NAME that can name a folder")
        if name in files or name == "own":
            parser.error(f"--boxes {source}: the name {name!r} is taken, choose another")
        files[name] = file
    args.boxes = files
    return args


def load_config(config_file: str, opts: Sequence[str]) -> Any:
    """The config of a file, or of a name in the model zoo with its weights, with overrides."""
    from detectron2 import model_zoo

    from meinst_d2.commands import train

    weights: tuple[str, ...] = ()
    if not os.path.isfile(config_file):
        try:
            weights = ("MODEL.WEIGHTS", model_zoo.get_checkpoint_url(config_file))
            config_file = model_zoo.get_config_file(config_file)
        except RuntimeError as error:
            fix = "give a path, or a name such as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
            what = "neither a file nor a trained model of Detectron2's model zoo"
            raise ValueError(f"--config-file {config_file} is {what}: {fix}") from error
    return train.load_config(argparse.Namespace(config_file=config_file, opts=[*weights, *opts]))


def print_table(results: Sequence[Any], threshold: float) -> None:
    width = max(len("boxes"), *(len(result.name) for result in results))
    print(f"\n{'':{width}}  {'box':>18}   {'mask':>18}   boxes / image")
    print(f"{'boxes':{width}} " + f" {'AP':>6}{'AP50':>7}{'AP75':>7}" * 2 + f"   scoring > {threshold:g}")
    for result in results:
        figures = "".join(f" {row['AP']:6.1f}{row['AP50']:7.1f}{row['AP75']:7.1f}" for row in (result.box, result.mask))
        print(f"{result.name:{width}} {figures}   {result.boxes_per_image(threshold):13.1f}")


@reporting("swap-boxes", KeyError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    # Imported here so that --help answers at once.
    from detectron2.data import MetadataCatalog, build_detection_test_loader
    from detectron2.modeling import build_model

    from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
    from meinst_d2.data.datasets import dataset_dicts
    from meinst_d2.engine.preflight import check_device
    from meinst_d2.evaluation.average_precision import without_nan
    from meinst_d2.evaluation.results import boxes_by_image
    from meinst_d2.evaluation.swap_boxes import draw_swaps, require_mask_head, swap_boxes
    from meinst_d2.files import atomic_path, require_writable

    cfg = load_config(args.config_file, args.opts)
    if not (args.dataset or cfg.DATASETS.TEST):
        raise ValueError("DATASETS.TEST is empty: name a dataset with --dataset")
    args.dataset = args.dataset or cfg.DATASETS.TEST[0]
    image_ids = [record["image_id"] for record in dataset_dicts(args.dataset)]
    metadata = MetadataCatalog.get(args.dataset)
    unmapped = {i: i for i in range(len(metadata.thing_classes))}  # not from a COCO file
    classes = metadata.get("thing_dataset_id_to_contiguous_id", unmapped)
    require_mask_head(cfg, len(classes))
    check_device(cfg)
    if not cfg.MODEL.WEIGHTS or not ("://" in cfg.MODEL.WEIGHTS or os.path.isfile(cfg.MODEL.WEIGHTS)):
        raise FileNotFoundError(f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} is not a file: give a trained model")
    require_writable(args.output / "swap_boxes.json")
    sources: dict[str, Any] = {"own": None}  # boxes by name and image id; None for the model's own
    for name, file in args.boxes.items():
        sources[name] = boxes_by_image(file, image_ids, classes)
        if not sources[name].keys() & set(image_ids[: args.limit]):
            fix = "raise --limit" if args.limit else "give a file with boxes of this dataset"
            raise ValueError(f"{file} has no boxes on the images that would be evaluated: {fix}")
    model = build_model(cfg).eval()
    MEInstCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    loader = build_detection_test_loader(cfg, args.dataset)
    limit = args.limit if args.limit and args.limit < len(loader) else None
    results = swap_boxes(model, loader, sources, args.dataset, output_dir=args.output, limit=limit)
    print_table(results, args.score_threshold)
    summary = {
        "config": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "dataset": args.dataset,
        "images": results[0].num_images,
        "score_threshold": args.score_threshold,
        "sources": [
            {
                "name": result.name,
                "file": args.boxes.get(result.name),
                "bbox": result.box,
                "segm": result.mask,
                "boxes_per_image": result.boxes_per_image(args.score_threshold),
                "boxes_per_image_above": {str(i / 20): result.boxes_per_image(i / 20) for i in range(20)},
            }
            for result in results
        ],
    }
    with atomic_path(args.output / "swap_boxes.json") as temporary:
        temporary.write_text(json.dumps(without_nan(summary), indent=1))
    draw_swaps(args.output / "swap_boxes.png", results, args.score_threshold)
    print(f"\nwrote {args.output}/swap_boxes.json and swap_boxes.png")
