"""Prediction: our forward pass against Detectron2's detectors, what comes after the head, and the peak of memory.

All models have random weights. Their score thresholds let as many candidates pass as a trained model's do, and our
boxes have a real object's average size, so that selection, suppression and pasting have their usual work.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Goal, PeakMemory, Row, Side, alternate, set_threads
from benchmarks.source import find_source

CONFIG = "MEInst_R_50_1x_none.yaml"
OURS, WITHOUT_MASKS, DEFORMABLE = "MEInst", "MEInst, MASK_ON False", "MEInst, deformable"
BASELINES = {
    "Mask R-CNN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "RetinaNet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "FCOS": "COCO-Detection/fcos_R_50_FPN_1x.py",
}
CLASSIFIERS = {
    OURS: "proposal_generator.head.cls_logits",
    "Mask R-CNN": "roi_heads.box_predictor.cls_score",
    "RetinaNet": "head.cls_score",
    "FCOS": "head.cls_score",
}
CANDIDATES = 3000
"""(Box, class) pairs per image above the score threshold."""
BOX_SIDE = 250
"""Of our boxes, in pixels: 6% of an image of 800 x 1333."""
MEGAPIXELS_12 = (3000, 4000)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short-edge", type=int, default=800, help="of the network's input in pixels (default 800)")
    parser.add_argument("--batch", type=int, default=1, help="images at once (default 1)")
    parser.add_argument("--detections", type=int, default=100, help="per image (default 100)")
    parser.add_argument("--no-baselines", action="store_true", help="measure our own models only")


def run(args: argparse.Namespace) -> list[Row]:
    import torch

    images, label = _images(args)
    models = {
        OURS: _our_model(args),
        WITHOUT_MASKS: _our_model(args, "MODEL.MASK_ON", False),
        DEFORMABLE: _our_model(args, "MODEL.MEINST.DEFORM_CONV", "last"),
    }
    if not args.no_baselines:
        models |= {name: _detectron2_model(name, args) for name in BASELINES}
    what = f"R-50, {label}"
    with torch.no_grad():
        for name, model in models.items():
            _let_candidates_pass(model, CLASSIFIERS.get(name, CLASSIFIERS[OURS]), images)
        found = {name: len(model(images)[0]["instances"]) for name, model in models.items()}
        sides = alternate({n: _call(m, images) for n, m in models.items()}, args.rounds, device=args.device)
        after_head = _after_head_row(what, models[OURS], images, args)
    return [
        _branch_row(what, models, sides, images),
        *(
            Row(what, sides[OURS], side, notes={f"detections of {OURS} and {name}": f"{found[OURS]} and {found[name]}"})
            for name, side in sides.items()
            if name not in (OURS, WITHOUT_MASKS)
        ),
        after_head,
        _memory_row(args),
    ]


def _call(model: Any, images: list[dict[str, Any]]) -> Callable[[], Any]:
    return lambda: model(images)


def _images(args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
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


def _our_model(args: argparse.Namespace, *overrides: Any) -> Any:
    """Random weights, boxes of one size, and the components of random templates."""
    import torch
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    import meinst_d2.modeling  # noqa: F401  registers the model
    from meinst_d2 import add_meinst_config

    cfg = get_cfg()
    add_meinst_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / CONFIG))
    keys = {
        "MODEL.DEVICE": args.device,
        "MODEL.MEINST.COMPONENTS": str(_components(cfg)),
        "TEST.DETECTIONS_PER_IMAGE": args.detections,
    }
    cfg.merge_from_list([x for pair in keys.items() for x in pair] + list(overrides))
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    head, strides = model.proposal_generator.head, model.proposal_generator.assignment_rule.strides
    with torch.no_grad():
        head.bbox_pred.bias.fill_(1)
        for scale, stride in zip(head.scales, strides, strict=True):
            for parameter in scale.parameters():
                parameter.fill_(BOX_SIDE / 2 / stride)
    return model


def _components(cfg: Any) -> Path:
    """A file with the components of random masks, made once."""
    import numpy as np

    from meinst_d2.encoding import PixelMoments, fit_pca, save_components

    size, dim = cfg.MODEL.MEINST.MASK_SIZE, cfg.MODEL.MEINST.DIM_MASK
    path = ROOT / f"output/benchmark/components_{size}_{dim}.npz"
    if not path.is_file():
        y, x = np.mgrid[:size, :size] / size
        cx, cy, rx, ry = np.random.default_rng(0).uniform(0.3, 0.7, (4, 2000, 1, 1))
        moments = PixelMoments(size)
        moments.update(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)
        save_components(path, [fit_pca(moments).truncated(dim)], {})
    return path


def _detectron2_model(name: str, args: argparse.Namespace) -> Any:
    """A model of Detectron2's own zoo."""
    import torch
    from detectron2 import model_zoo
    from detectron2.config import CfgNode, instantiate
    from detectron2.modeling import build_model

    cfg = model_zoo.get_config(BASELINES[name])
    torch.manual_seed(0)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE, cfg.TEST.DETECTIONS_PER_IMAGE = args.device, args.detections
        return build_model(cfg).eval()
    model = instantiate(cfg.model).to(args.device).eval()
    model.max_detections_per_image = args.detections
    return model


def _let_candidates_pass(model: Any, classifier: str, images: list[dict[str, Any]]) -> None:
    """Set the model's score threshold to the score of its 3000th best pair of box and class."""
    import torch

    logits: list[Any] = []
    handle = model.get_submodule(classifier).register_forward_hook(lambda *call: logits.append(call[2]))
    model(images)
    handle.remove()
    if "box_predictor" in classifier:
        scores = torch.cat(logits).softmax(1)[:, :-1]  # the last is the background
        holder = model.roi_heads.box_predictor
    else:
        scores = torch.cat([x.flatten() for x in logits]).sigmoid()
        holder = model
    best = scores.flatten().topk(min(CANDIDATES * len(images), scores.numel())).values
    threshold = best[-1].item()
    if classifier == CLASSIFIERS[OURS]:
        generator = model.proposal_generator
        generator.inference_rule = dataclasses.replace(generator.inference_rule, score_thresh=threshold)
    else:
        # Detectron2's FCOS takes the root of the product with a centerness that is one half before training.
        holder.test_score_thresh = (threshold / 2) ** 0.5 if type(model).__name__ == "FCOS" else threshold


def _branch_row(what: str, models: dict[str, Any], sides: dict[str, Side], images: list[dict[str, Any]]) -> Row:
    row = Row(what, sides[OURS], sides[WITHOUT_MASKS])
    over = 1 / row.ratio - 1
    flops = {name: _flops(models[name], images) for name in (OURS, WITHOUT_MASKS)}
    notes = {
        "time over MASK_ON False": f"{over:.1%}",
        "FLOPs over MASK_ON False": f"{flops[OURS] / flops[WITHOUT_MASKS] - 1:.1%} ({flops[OURS] / 1e9:.0f} G in all)",
    }
    return dataclasses.replace(row, goal=Goal("<= 30% over", over <= 0.3), notes=notes)


def _flops(model: Any, images: list[dict[str, Any]]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


def _parts(model: Any, images: list[dict[str, Any]]) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """The forward pass up to the head's output, and all that comes after it."""
    from detectron2.structures import ImageList

    from meinst_d2.fcos.locations import level_locations
    from meinst_d2.modeling.inference import detect, postprocess

    generator = model.proposal_generator

    def preprocess() -> Any:
        pixels = [(x["image"].to(model.device) - model.pixel_mean) / model.pixel_std for x in images]
        return ImageList.from_tensors(pixels, model.backbone.size_divisibility)

    batch = preprocess()

    def forward() -> Any:
        features = model.backbone(preprocess().tensor)
        return generator.head([features[name] for name in generator.in_features])

    def finish(output: Any) -> Any:
        strides = generator.assignment_rule.strides
        locations = level_locations(output.level_shapes, strides, batch.tensor.device)
        found = detect(output, locations, strides, batch.image_sizes, generator.inference_rule, generator.mask_encoder)
        return [postprocess(x, *size) for x, size in zip(found, batch.image_sizes, strict=True)]

    return forward, finish


def _after_head_row(what: str, model: Any, images: list[dict[str, Any]], args: argparse.Namespace) -> Row:
    forward, finish = _parts(model, images)
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
    images, label = _images(args)
    model = _our_model(args)
    model.mask_output = mask_output
    images[0]["height"], images[0]["width"] = MEGAPIXELS_12
    generator = model.proposal_generator
    generator.inference_rule = dataclasses.replace(generator.inference_rule, score_thresh=0.0)
    with torch.no_grad(), PeakMemory(args.device) as peak:
        count = len(model(images)[0]["instances"])
    return count, label, peak.megabytes
