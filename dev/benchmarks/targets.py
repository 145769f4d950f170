"""Training targets: masks once per instance and sparse assignment, against Detectron2 per location and dense."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.common import Goal, Row, alternate
from benchmarks.source import find_source

if TYPE_CHECKING:
    import numpy as np
    from detectron2.structures import Instances
    from torch import Tensor

    from meinst_d2.encoding import MaskEncoder
    from meinst_d2.fcos.assign import AssignmentRule, Positives

STRIDES = (8, 16, 32, 64, 128)
SIZE_BOUNDS = (64, 128, 256, 512)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=10, help="different batches per measurement (default 10)")
    parser.add_argument("--batch-size", type=int, default=2, help="images per batch (default 2)")
    parser.add_argument("--size", type=int, default=800, help="shorter side of an image (default 800)")
    parser.add_argument("--max-size", type=int, default=1333, help="most of the longer side (default 1333)")


@dataclass(frozen=True)
class Batch:
    """The ground truth of some images at their training size.

    Attributes:
        instances: per image, with ``gt_boxes``, ``gt_classes`` and polygons as ``gt_masks``.
        boxes: (M, 4) of the batch.
        polygons: M lists of parts.
        level_shapes: (height, width) of each level.
    """

    instances: list[Instances]
    boxes: np.ndarray
    polygons: list[list[np.ndarray]]
    level_shapes: list[tuple[int, int]]

    @property
    def boxes_per_image(self) -> list[Tensor]:
        return [instances.gt_boxes.tensor for instances in self.instances]


def run(args: argparse.Namespace) -> list[Row]:
    from meinst_d2.fcos.assign import AssignmentRule

    source = find_source(args.data)
    batches = make_batches(source.load(), args)
    encoder = fitted_encoder()
    rule = AssignmentRule(STRIDES, SIZE_BOUNDS)
    what = f"{len(batches)} batches of {args.batch_size}, {args.size} px, {source.label}"
    return [
        mask_targets(batches, encoder, rule, what, args),
        more_positives(batches, encoder, rule, what, args),
        assignment(batches, rule, what, args),
    ]


def make_batches(content: dict[str, Any], args: argparse.Namespace) -> list[Batch]:
    """The first images that have polygon instances, in order."""
    of_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        if isinstance(annotation["segmentation"], list) and not annotation.get("iscrowd"):
            of_image.setdefault(annotation["image_id"], []).append(annotation)
    images = [image for image in content["images"] if image["id"] in of_image]
    needed = args.batches * args.batch_size
    if len(images) < needed:
        raise ValueError(f"{needed} images are needed, {len(images)} have polygons: give a smaller --batches")
    made = [resized(image, of_image[image["id"]], args) for image in images[:needed]]
    return [join(made[i : i + args.batch_size]) for i in range(0, needed, args.batch_size)]


def resized(image: dict[str, Any], annotations: Sequence[dict[str, Any]], args: argparse.Namespace) -> Instances:
    """Instances of an image at its training size."""
    import numpy as np
    import torch
    from detectron2.data.transforms import ResizeShortestEdge
    from detectron2.structures import Boxes, Instances, PolygonMasks

    height, width = image["height"], image["width"]
    shape = ResizeShortestEdge.get_output_shape(height, width, args.size, args.max_size)
    scale = np.array([shape[1] / width, shape[0] / height])
    found = Instances(shape)
    xywh = np.array([annotation["bbox"] for annotation in annotations])
    boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1) * np.tile(scale, 2)
    found.gt_boxes = Boxes(torch.from_numpy(boxes.astype(np.float32)))
    found.gt_boxes.clip(shape)
    found.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    found.gt_masks = PolygonMasks(
        [[(np.reshape(part, (-1, 2)) * scale).ravel() for part in a["segmentation"]] for a in annotations]
    )
    return found


def join(instances: list[Instances]) -> Batch:
    """A batch, padded as Detectron2 pads it."""
    import numpy as np

    height, width = (max(found.image_size[axis] for found in instances) for axis in (0, 1))
    height, width = -(-height // 32) * 32, -(-width // 32) * 32
    return Batch(
        instances,
        np.concatenate([found.gt_boxes.tensor.numpy() for found in instances]),
        [polygons for found in instances for polygons in found.gt_masks.polygons],
        [(-(-height // stride), -(-width // stride)) for stride in STRIDES],
    )


def fitted_encoder() -> MaskEncoder:
    """D = 60 components of random masks: what they show does not matter here."""
    import numpy as np

    from meinst_d2.encoding import PCAEncoder, PixelMoments, fit_pca

    moments = PixelMoments(28)
    moments.update(np.random.default_rng(0).random((1000, 28, 28)) < 0.5)
    encoder = PCAEncoder(dim=60, mask_size=28)
    encoder.load_bases([fit_pca(moments).truncated(60)])
    return encoder.eval()


def rasterised_once(batch: Batch, positives: Positives, encoder: MaskEncoder) -> Tensor:
    """(P, D) targets: each instance rasterised and encoded once."""
    import torch

    from meinst_d2.masks.rasterize import rasterize_polygons

    masks = rasterize_polygons(batch.polygons, batch.boxes, encoder.mask_size)
    return encoder.encode(torch.from_numpy(masks))[positives.gt_idx]


def rasterised_per_location(batch: Batch, positives: Positives, encoder: MaskEncoder) -> Tensor:
    """(P, D) targets: Detectron2's crop_and_resize for every positive location."""
    import torch
    from detectron2.structures import PolygonMasks

    boxes = torch.from_numpy(batch.boxes)[positives.gt_idx]
    masks = PolygonMasks(batch.polygons)[positives.gt_idx].crop_and_resize(boxes, encoder.mask_size)
    return encoder.encode(masks)


def with_positives(batches: Sequence[Batch], rule: AssignmentRule) -> list[tuple[Batch, Positives]]:
    """Batches and their positive locations."""
    from meinst_d2.fcos.assign import assign_batch

    return [(batch, assign_batch(batch.boxes_per_image, batch.level_shapes, rule)) for batch in batches]


def mask_targets(
    batches: Sequence[Batch], encoder: MaskEncoder, rule: AssignmentRule, what: str, args: argparse.Namespace
) -> Row:
    import torch

    given = with_positives(batches, rule)
    sides = {
        "once per instance": lambda: [rasterised_once(*pair, encoder) for pair in given],
        "detectron2 crop_and_resize per location": lambda: [rasterised_per_location(*pair, encoder) for pair in given],
    }
    ours, theirs = (torch.cat(side()) for side in sides.values())
    row = Row(f"mask targets, {what}", *alternate(sides, args.rounds).values())
    goal = Goal(">= 5x, same targets", row.ratio >= 5 and torch.allclose(ours, theirs, rtol=0, atol=1e-4))
    instances = sum(len(batch.boxes) for batch in batches)
    notes = {
        "instances and positive locations": f"{instances} and {len(ours)}",
        "largest difference of a coefficient": f"{(ours - theirs).abs().max():.1g}",
    }
    return Row(row.what, row.ours, row.baseline, goal=goal, notes=notes)


def more_positives(
    batches: Sequence[Batch], encoder: MaskEncoder, rule: AssignmentRule, what: str, args: argparse.Namespace
) -> Row:
    """Our cost with the whole box positive on every level, against that with centre sampling."""
    from meinst_d2.fcos.assign import AssignmentRule

    few, many = with_positives(batches, rule), with_positives(batches, AssignmentRule(STRIDES, SIZE_BOUNDS, None))
    sides = alternate(
        {
            "whole boxes": lambda: [rasterised_once(*pair, encoder) for pair in many],
            "centre sampling": lambda: [rasterised_once(*pair, encoder) for pair in few],
        },
        args.rounds,
    )
    row = Row(f"mask targets with more positives, {what}", *sides.values())
    counts = [sum(len(positives) for _, positives in given) for given in (few, many)]
    notes = {"positive locations": f"{counts[0]} with centre sampling, {counts[1]} in whole boxes"}
    return Row(row.what, row.ours, row.baseline, goal=Goal("<= 1.25 times the cost", row.ratio >= 0.8), notes=notes)


def detectron2_fcos() -> Any:
    """Detectron2's FCOS without a network: it labels the anchors."""
    import torch
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.backbone import Backbone
    from detectron2.modeling.meta_arch.fcos import FCOS

    class Shapes(Backbone):
        def output_shape(self) -> dict[str, ShapeSpec]:
            return {f"p{i + 3}": ShapeSpec(channels=1, stride=stride) for i, stride in enumerate(STRIDES)}

        def forward(self, x: Any) -> Any:
            raise NotImplementedError

    model = FCOS(
        backbone=Shapes(),
        head=torch.nn.Identity(),
        head_in_features=[f"p{i}" for i in range(3, 8)],
        num_classes=1,
        pixel_mean=[0.0],
        pixel_std=[1.0],
    )
    # Detectron2 puts the first location at 0, FCOS and MEInst at half a stride.
    model.anchor_generator = DefaultAnchorGenerator(
        sizes=[[stride] for stride in STRIDES], aspect_ratios=[1.0], strides=STRIDES, offset=0.5
    )
    return model


def assignment(batches: Sequence[Batch], rule: AssignmentRule, what: str, args: argparse.Namespace) -> Row:
    import torch

    from meinst_d2.fcos.assign import assign_batch

    model = detectron2_fcos()
    anchors = [model.anchor_generator([torch.zeros(1, 1, *s) for s in batch.level_shapes]) for batch in batches]
    sides = {
        "assign_batch": lambda: [assign_batch(b.boxes_per_image, b.level_shapes, rule) for b in batches],
        "detectron2 FCOS.label_anchors": lambda: [
            model.label_anchors(a, batch.instances) for a, batch in zip(anchors, batches, strict=True)
        ],
    }
    ours, theirs = (side() for side in sides.values())
    same, on_bound, other = 0, 0, 0
    for batch, found, (labels, boxes) in zip(batches, ours, theirs, strict=True):
        counts = compare(batch, found, torch.stack(labels), torch.stack(boxes))
        same, on_bound, other = same + counts[0], on_bound + counts[1], other + counts[2]
    row = Row(f"assignment and box targets, {what}", *alternate(sides, args.rounds).values())
    goal = Goal(">= 5x, same result", row.ratio >= 5 and other == 0)
    notes = {
        "positive locations": f"{same} the same, {other} different, {on_bound} with a side exactly on a bound between "
        "levels, which Detectron2 leaves out and the paper's code gives to both"
    }
    return Row(row.what, row.ours, row.baseline, goal=goal, notes=notes)


def compare(batch: Batch, found: Positives, labels: Tensor, boxes: Tensor) -> tuple[int, int, int]:
    """Positive locations with the same box; only ours, with the farthest side on a bound; all others."""
    import torch

    their_positives = labels == 0  # (N, R)
    ours = torch.zeros_like(their_positives)
    ours[found.image_idx, found.location_idx] = True
    assigned = torch.from_numpy(batch.boxes)[found.gt_idx]
    same = their_positives[found.image_idx, found.location_idx] & (
        boxes[found.image_idx, found.location_idx] == assigned
    ).all(1)
    sizes = torch.tensor([height * width for height, width in batch.level_shapes])
    level = torch.bucketize(found.location_idx, sizes.cumsum(0), right=True)
    farthest = found.ltrb.amax(1) * torch.tensor(STRIDES)[level]
    on_bound = ~same & torch.isin(farthest, torch.tensor(SIZE_BOUNDS, dtype=torch.float32))
    different = int((~same & ~on_bound).sum()) + int((their_positives & ~ours).sum())
    return int(same.sum()), int(on_bound.sum()), different
