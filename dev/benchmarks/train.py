"""A training step (forward, losses, backward, update) in float32 and bfloat16, against Detectron2's Mask R-CNN.

Both have random weights, normalised as trained ones are (see benchmarks/models.py), so that Mask R-CNN samples its 512
boxes an image. Only those that chance puts on objects reach its mask head, fewer than later in training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.common import Goal, Row, alternate
from benchmarks.models import REFINED, detectron2_model, our_config, our_model
from benchmarks.source import Source, find_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=2, help="images (default 2)")
    parser.add_argument("--size", type=int, default=800, help="shorter side of the images (default 800)")
    parser.add_argument("--deformable", action="store_true", help="also with deformable convolutions")
    parser.add_argument(
        "--precision", default="float32", help="of both: float32 (then also ours in bfloat16), float16 (CUDA), bfloat16"
    )
    parser.set_defaults(rounds=3)


def run(args: argparse.Namespace) -> list[Row]:
    """One row per model of ours."""
    if args.batch < 1 or args.size < 32:
        raise ValueError(f"--batch {args.batch} and --size {args.size} must be at least 1 and 32")
    source = find_source(args.data, "train")
    records = polygon_records(source, args.batch)
    steps = {"ours": ours(records, args), "Mask R-CNN": mask_rcnn(records, args)}
    steps["ours, refined"] = ours(records, args, *REFINED)
    if args.deformable:
        steps["ours, deformable"] = ours(records, args, "MODEL.MEINST.DEFORM_CONV", "last")
    if args.precision == "float32":
        steps["ours, bfloat16"] = ours(records, argparse.Namespace(**{**vars(args), "precision": "bfloat16"}))
    sides = alternate(steps, args.rounds, device=args.device)
    what = f"step, R-50, {args.size} px, batch {args.batch}, {args.precision}, {source.label}"
    rows = [Row(what, sides["ours"], sides["Mask R-CNN"])]
    rows[0] = Row(what, sides["ours"], sides["Mask R-CNN"], goal=Goal("not slower", rows[0].ratio >= 1))
    rows.append(Row(f"{what}, refined masks", sides["ours, refined"], sides["ours"]))
    if args.deformable:
        rows.append(Row(f"{what}, deformable", sides["ours, deformable"], sides["Mask R-CNN"]))
    if "ours, bfloat16" in steps:
        rows.append(Row(f"{what}, bfloat16", sides["ours, bfloat16"], sides["ours"]))
    return rows


def polygon_records(source: Source, count: int) -> list[dict[str, Any]]:
    """The first images with at least three objects, with those of their objects that Mask R-CNN can learn from."""
    from detectron2.data.datasets import load_coco_json

    chosen = []
    for record in load_coco_json(str(source.json_file), str(source.images)):
        annotations = [a for a in record["annotations"] if not a["iscrowd"] and isinstance(a["segmentation"], list)]
        if len(annotations) >= 3:
            chosen.append({**record, "annotations": annotations})
        if len(chosen) == count:
            return chosen
    raise ValueError(f"{source.json_file} has {len(chosen)} images with three objects, --batch asks for {count}")


def ours(records: list[dict[str, Any]], args: argparse.Namespace, *overrides: Any) -> Callable[[], None]:
    """A step of MEInst_R_50_1x_none, on these images."""
    from detectron2.data import transforms as T

    from meinst_d2.data.mapper import MEInstDatasetMapper

    cfg = our_config(args, *overrides)
    mapper = MEInstDatasetMapper(
        augmentations=[T.ResizeShortestEdge(args.size, 1333)],
        image_format="BGR",
        mask_size=cfg.MODEL.MEINST.MASK_SIZE,
        fine_size=cfg.MODEL.MEINST.REFINE.TARGET_SIZE,
    )
    batch = [mapper(record) for record in records]
    return step_of(our_model(cfg, batch), batch, args)


def mask_rcnn(records: list[dict[str, Any]], args: argparse.Namespace) -> Callable[[], None]:
    """A step of Detectron2's Mask R-CNN R50-FPN."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    mapper = DatasetMapper(
        is_train=True,
        augmentations=[T.ResizeShortestEdge(args.size, 1333)],
        image_format="BGR",
        use_instance_mask=True,
    )
    batch = [mapper(record) for record in records]
    return step_of(detectron2_model("Mask R-CNN", args, batch), batch, args)


def step_of(model: Any, batch: list[dict[str, Any]], args: argparse.Namespace) -> Callable[[], None]:
    """The function that is timed."""
    import torch
    from detectron2.utils.events import EventStorage

    from meinst_d2.precision import autocast

    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6, momentum=0.9)
    scaler = torch.amp.GradScaler(args.device, enabled=args.precision == "float16")

    def step() -> None:
        with EventStorage(0), autocast(torch.device(args.device), args.precision):
            losses = model(batch)
        optimizer.zero_grad()
        scaler.scale(sum(losses.values())).backward()
        scaler.step(optimizer)
        scaler.update()

    return step
