"""Prediction: our forward pass against Detectron2's detectors, what comes after the head, and the peak of memory.

All models have random weights, normalised as trained ones are (see benchmarks/models.py). Their score thresholds let
the 1000 best candidates of every level pass, which is all that can, and our boxes have a real object's average size, so
that selection, suppression and pasting have at least their usual work.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import Goal, PeakMemory, Row, Side, alternate, set_threads
from benchmarks.models import DETECTRON2, REFINED, detectron2_model, our_config, our_model
from benchmarks.source import find_source

OURS, WITHOUT_MASKS, COMPILED = "MEInst", "MEInst, MASK_ON False", "MEInst, torch.compile"
VARIANTS: dict[str, tuple[Any, ...]] = {
    WITHOUT_MASKS: ("MODEL.MASK_ON", False),
    "MEInst, refined": REFINED,
    "MEInst, deformable": ("MODEL.MEINST.DEFORM_CONV", "last"),
    "MEInst, bfloat16": ("MODEL.MEINST.PRECISION", "bfloat16"),
}
"""What is measured beside the model of the command line, by the keys that differ."""
OTHER_LAYOUT = {"cpu": "never", "cuda": "always"}
"""The value of CHANNELS_LAST that "auto" does not mean."""
CANDIDATES = 5000
"""(Box, class) pairs per image that Mask R-CNN, which has no cap of its own, passes on: as many as five levels do."""
AT_ONCE = 4
"""Images of a batch that is compared with its images one by one."""
MEGAPIXELS_12 = (3000, 4000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short-edge", type=int, default=800, help="of the network's input in pixels (default 800)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default 1)")
    parser.add_argument("--detections", type=int, default=100, help="per image (default 100)")
    parser.add_argument("--no-baselines", action="store_true", help="measure our own models only")
    parser.add_argument("--compile", action="store_true", help="also with torch.compile of backbone and head (minutes)")
    parser.add_argument(
        "--precision", default="float32", help="of all: float32, float16 (CUDA) or bfloat16 (default float32)"
    )
    parser.set_defaults(rounds=5)


def run(args: argparse.Namespace) -> list[Row]:
    import torch

    images, label = input_images(args)
    calls = {name: _call(model, images, args) for name, model in _models(images, args).items()}
    with torch.no_grad():
        found = {name: len(call()[0]["instances"]) for name, call in calls.items()}
        sides = alternate(calls, args.rounds, device=args.device)
        ours = prepared(our_model(our_config(args), images), images, args)
        what = f"R-50, {label}, {args.precision}"
        after_head = _after_head_row(what, ours, images, args)
    return [
        _branch_row(what, sides, images, args),
        *(
            Row(what, sides[OURS], side, notes={f"detections of {OURS} and {name}": f"{found[OURS]} and {found[name]}"})
            for name, side in sides.items()
            if name not in (OURS, WITHOUT_MASKS)
        ),
        after_head,
        _batch_row(args),
        _memory_row(args),
    ]


def _models(images: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    built = {OURS: our_model(our_config(args), images)}
    if args.compile:
        built[COMPILED] = compiled(our_model(our_config(args), images))
    other = OTHER_LAYOUT[args.device]
    variants = VARIANTS | {f"MEInst, CHANNELS_LAST {other}": ("MODEL.MEINST.CHANNELS_LAST", other)}
    for name, overrides in variants.items():
        built[name] = our_model(our_config(args, *overrides), images)
    if not args.no_baselines:
        built |= {name: detectron2_model(name, args, images) for name in DETECTRON2}
    return {name: prepared(model, images, args) for name, model in built.items()}


def compiled(model: Any) -> Any:
    """The model, with backbone and head compiled."""
    import torch

    model.backbone.compile()
    model.proposal_generator.head.compile()
    torch._dynamo.config.cache_size_limit = 64
    return model


def _call(model: Any, images: list[dict[str, Any]], args: argparse.Namespace) -> Callable[[], Any]:
    """A prediction; Detectron2's models compute in our precision too."""
    import torch

    from meinst_d2.precision import autocast

    def call() -> Any:
        if hasattr(model, "precision"):
            return model(images)
        with autocast(torch.device(args.device), args.precision):
            return model(images)

    return call


def input_images(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    """The first images, resized for the network, with outputs of the same size."""
    import torch
    from detectron2.data.detection_utils import read_image
    from detectron2.data.transforms import ResizeShortestEdge

    source = find_source(args.data)
    resize = ResizeShortestEdge(args.short_edge, 1333 * args.short_edge // 800)
    images = []
    for record in source.load()["images"][: args.batch]:
        pixels = read_image(str(Path(source.images) / record["file_name"]), format="BGR")
        pixels = resize.get_transform(pixels).apply_image(pixels)
        images.append({"image": torch.from_numpy(pixels.transpose(2, 0, 1).copy())})
    height, width = images[0]["image"].shape[1:]
    return images, f"batch {len(images)} of {height} x {width}"


def prepared(model: Any, images: list[dict[str, Any]], args: argparse.Namespace) -> Any:
    """The model, with a threshold that lets as much through as there can be, and the cap set."""
    if hasattr(model, "roi_heads"):
        predictor = model.roi_heads.box_predictor
        predictor.test_score_thresh = _best_score_of_mask_rcnn(model, images)
        predictor.test_topk_per_image = args.detections
    elif hasattr(model, "proposal_generator"):
        generator = model.proposal_generator
        rule = dataclasses.replace(generator.inference_rule, score_thresh=0.0, max_detections=args.detections)
        generator.inference_rule = rule
    else:
        model.test_score_thresh, model.max_detections_per_image = 0.0, args.detections
    return model


def _best_score_of_mask_rcnn(model: Any, images: list[dict[str, Any]]) -> float:
    """The score of its 5000th best pair of box and class: it has no cap before suppression."""
    import torch

    logits: list[Any] = []
    layer = model.roi_heads.box_predictor.cls_score
    with torch.no_grad(), layer.register_forward_hook(lambda *call: logits.append(call[2])):
        model(images)
    scores = torch.cat(logits).softmax(1)[:, :-1].flatten()  # the last is the background
    return scores.topk(min(CANDIDATES * len(images), len(scores))).values[-1].item()


def _branch_row(what: str, sides: dict[str, Side], images: list[dict[str, Any]], args: argparse.Namespace) -> Row:
    row = Row(what, sides[OURS], sides[WITHOUT_MASKS])
    over = 1 / row.ratio - 1
    with_masks, without = (
        flops(our_model(our_config(args, *overrides), images), images) for overrides in ((), VARIANTS[WITHOUT_MASKS])
    )
    notes = {
        "time over MASK_ON False": f"{over:.1%}",
        "FLOPs over MASK_ON False": f"{with_masks / without - 1:.1%} ({with_masks / 1e9:.0f} G in all)",
    }
    return dataclasses.replace(row, goal=Goal("<= 30% over", over <= 0.3), notes=notes)


def flops(model: Any, images: list[dict[str, Any]]) -> int:
    """Of a prediction: two for each product that is added up."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


def parts_of(model: Any, images: list[dict[str, Any]]) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """The forward pass up to the head's output, and all that comes after it."""
    from meinst_d2.fcos.boxes import level_locations
    from meinst_d2.modeling.inference import detect, postprocess
    from meinst_d2.precision import autocast

    generator = model.proposal_generator
    batch = model.preprocess_image(images)

    def forward() -> Any:
        with autocast(model.device, model.precision):
            features = model.backbone(model.preprocess_image(images).tensor)
            return generator.head([features[name] for name in generator.in_features])

    def finish(output: Any) -> Any:
        strides = generator.assignment_rule.strides
        locations = level_locations(output.level_shapes, strides, batch.tensor.device)
        found = detect(output, locations, strides, batch.image_sizes, generator.inference_rule, generator.mask_encoder)
        return [postprocess(x, *size) for x, size in zip(found, batch.image_sizes, strict=True)]

    return forward, finish


def _after_head_row(what: str, model: Any, images: list[dict[str, Any]], args: argparse.Namespace) -> Row:
    forward, finish = parts_of(model, images)
    output = forward()
    sides = alternate(
        {"after the head": lambda: finish(output), "up to the head": forward}, args.rounds, device=args.device
    )
    after, before = sides.values()
    share = statistics.median(a / (a + b) for a, b in zip(after.samples, before.samples, strict=True))
    detections = sum(map(len, finish(output)))
    return Row(
        f"{what}, {detections} detections",
        after,
        before,
        goal=Goal("<= 10% of the whole", share <= 0.1),
        notes={"select, suppress, decode and paste take": f"{share:.1%} of the whole"},
    )


def _batch_row(args: argparse.Namespace) -> Row:
    """Four images at once and one by one, each with the padding that it needs."""
    import torch

    images, label = input_images(argparse.Namespace(**{**vars(args), "batch": AT_ONCE}))
    model = prepared(our_model(our_config(args), images[:1]), images[:1], args)
    calls = {"at once": lambda: model(images), "one by one": lambda: [model([image]) for image in images]}
    with torch.no_grad():
        sides = alternate(calls, args.rounds, device=args.device)
    return Row(f"R-50, {label}", *sides.values())


def _memory_row(args: argparse.Namespace) -> Row:
    """300 detections on an image of 12 megapixels; each kind in a process of its own, that nothing else has run in."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    sides = []
    for kind, name in (("rle", "encodings"), ("bitmask", "bit masks")):
        with context.Pool(1) as pool:
            count, label, megabytes = pool.apply(_measure_memory, (args, kind))
        sides.append(Side(name, [megabytes]))
    height, width = MEGAPIXELS_12
    what = f"peak above the model, {count} detections in {height} x {width}, {label}"
    return Row(what, sides[0], sides[1], unit="MB", goal=Goal("< 500 MB", sides[0].samples[0] < 500))


def _measure_memory(args: argparse.Namespace, mask_output: str) -> tuple[int, str, float]:
    """Number of detections, what the network sees, and megabytes of a whole prediction."""
    import torch

    set_threads(args.threads)
    args = argparse.Namespace(**{**vars(args), "detections": 300, "batch": 1})
    images, label = input_images(args)
    few = argparse.Namespace(**{**vars(args), "short_edge": 64})  # preparing takes memory too
    model = our_model(our_config(args), input_images(few)[0])
    model.mask_output = mask_output
    images[0]["height"], images[0]["width"] = MEGAPIXELS_12
    generator = model.proposal_generator
    generator.inference_rule = dataclasses.replace(generator.inference_rule, score_thresh=0.0, max_detections=300)
    with torch.no_grad(), PeakMemory(args.device) as peak:
        count = len(model(images)[0]["instances"])
    return count, label, peak.megabytes
