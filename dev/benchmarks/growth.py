"""Growth of the cost of prediction and of training targets with image size, objects, D and S, as a table and a plot."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT, Row, Side, alternate
from benchmarks.plots import LIMIT, draw_growth

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHORT_EDGES = (200, 400, 600, 800, 1000, 1200)
OBJECTS = (1, 3, 10, 30, 100, 300, 1000)
DIMS = (20, 60, 100, 200, 400, 784)
MASK_SIZES = (7, 14, 28, 56, 112)
OF_IMAGE = (800, 1333)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short-edges", type=int, nargs="+", default=SHORT_EDGES, metavar="N", help="of the images")
    parser.add_argument("--objects", type=int, nargs="+", default=OBJECTS, metavar="N", help="in an image")
    parser.add_argument("--dims", type=int, nargs="+", default=DIMS, metavar="D", help="numbers of coefficients")
    parser.add_argument("--mask-sizes", type=int, nargs="+", default=MASK_SIZES, metavar="S", help="of the template")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/growth.png", metavar="FILE", help="the plot")
    parser.set_defaults(rounds=3, batch=1, detections=100, precision="float32")


def run(args: argparse.Namespace) -> list[Row]:
    import torch

    with torch.no_grad():
        panels = {
            "shorter side of the image in pixels": list(image_size(args)),
            "objects in an image of 800 x 1333": list(number_of_objects(args)),
            "number of coefficients, D": list(number_of_coefficients(args)),
            "side of the template, S": list(side_of_template(args)),
        }
    draw_growth(panels, args.plot, "milliseconds", columns=2)
    return [row for panel in panels.values() for row in panel]


def rows_of(sides: Mapping[str, Callable[[], Any]], value: int, args: argparse.Namespace) -> Iterator[Row]:
    """Every function measured in turns with the others, at one point of a panel."""
    for name, side in alternate(sides, args.rounds, device=args.device).items():
        yield Row(f"{name} at {value:,}", side)


def image_size(args: argparse.Namespace) -> Iterator[Row]:
    """The network against its convolutions' FLOPs at the speed of one large convolution; and what comes after it."""
    import torch

    from benchmarks import infer
    from benchmarks.models import our_config, our_model

    speed = flops_per_second(torch.device(args.device), args.rounds)
    for edge in args.short_edges:
        args.short_edge = edge
        images, _ = infer.input_images(args)
        model = infer.prepared(our_model(our_config(args), images), images, args)
        forward, finish = infer.parts_of(model, images)
        output = forward()

        def after_head(output: Any = output, finish: Callable[[Any], Any] = finish) -> Any:
            return finish(output)

        yield from rows_of({"network": forward, "select, suppress, decode, paste": after_head}, edge, args)
        limit = 1e3 * infer.flops(model, images) / speed
        yield Row(f"the network's FLOPs{LIMIT} at {edge:,}", Side("limit", [limit]))


def flops_per_second(device: torch.device, rounds: int) -> float:
    """What one large convolution reaches."""
    import torch

    channels, height, width = 256, 100, 168
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1).to(device).to(memory_format=torch.channels_last)
    x = torch.randn(1, channels, height, width, device=device).to(memory_format=torch.channels_last)
    samples = alternate({"conv": lambda: conv(x)}, rounds, device=device.type)["conv"].samples
    return 2 * 9 * channels**2 * height * width / (1e-3 * min(samples))


def number_of_objects(args: argparse.Namespace) -> Iterator[Row]:
    """Targets of ground-truth objects; masks of detections against one write of the masks' pixels."""
    import numpy as np

    from benchmarks import targets
    from benchmarks.detections import ObjectPool
    from benchmarks.source import find_source
    from meinst_d2.fcos.assign import AssignmentRule, assign_batch
    from meinst_d2.masks import encode_templates, paste_masks
    from meinst_d2.masks.rasterize import rasterize_polygons

    source = find_source(args.data)
    pool, objects, encoder = ObjectPool(source), polygon_objects(args), encoder_of(60, 28)
    rule = AssignmentRule(targets.STRIDES, targets.SIZE_BOUNDS)
    shapes = [tuple(-(-side // stride) for side in OF_IMAGE) for stride in targets.STRIDES]
    for count in args.objects:
        polygons, boxes = objects(count)
        templates, box_tensor = pool.draw(count, *OF_IMAGE)
        masks = np.ones((count, *OF_IMAGE), np.bool_)

        def make_targets(polygons: Any = polygons, boxes: Tensor = boxes) -> Tensor:
            return encoder.encode(as_tensor(rasterize_polygons(polygons, boxes.numpy(), 28)))

        def assign(boxes: Tensor = boxes) -> Any:
            return assign_batch([boxes], shapes, rule)

        def paste(templates: Tensor = templates, boxes: Tensor = box_tensor) -> Tensor:
            return paste_masks(templates, boxes, *OF_IMAGE)

        def encode(templates: Tensor = templates, boxes: Tensor = box_tensor) -> Any:
            return encode_templates(templates, boxes, *OF_IMAGE)

        def write(masks: Any = masks) -> None:
            masks.fill(False)

        functions = {
            "assignment": assign,
            "mask targets": make_targets,
            "bit masks": paste,
            "encodings": encode,
            f"one write of the bit masks{LIMIT}": write,
        }
        yield from rows_of(functions, count, args)


def number_of_coefficients(args: argparse.Namespace) -> Iterator[Row]:
    """100 masks through an encoder, and the convolution that predicts coefficients on the maps of 800 x 1333."""
    import torch

    masks = torch.rand(100, 28, 28) < 0.5
    maps = [torch.randn(1, 256, -(-800 // s), -(-1333 // s)) for s in (8, 16, 32, 64, 128)]
    maps = [x.to(args.device).to(memory_format=torch.channels_last) for x in maps]
    for dim in args.dims:
        encoder = encoder_of(dim, 28)
        coeffs = encoder.encode(masks)
        conv = torch.nn.Conv2d(256, dim, 3, padding=1).to(args.device).to(memory_format=torch.channels_last)

        def predict(conv: torch.nn.Conv2d = conv) -> Any:
            return [conv(x) for x in maps]

        functions = {
            "encode 100 masks": lambda encoder=encoder: encoder.encode(masks),
            "decode 100 masks": lambda encoder=encoder, coeffs=coeffs: encoder.decode(coeffs),
            "predict coefficients everywhere": predict,
        }
        yield from rows_of(functions, dim, args)


def side_of_template(args: argparse.Namespace) -> Iterator[Row]:
    """100 objects of an image of 800 x 1333, rasterised, encoded and decoded with D = 40, pasted."""
    import torch

    from meinst_d2.masks import encode_templates, paste_masks
    from meinst_d2.masks.rasterize import rasterize_polygons

    polygons, boxes = polygon_objects(args)(100)
    for size in args.mask_sizes:
        encoder = encoder_of(min(40, size**2), size)
        masks = as_tensor(rasterize_polygons(polygons, boxes.numpy(), size))
        coeffs = encoder.encode(masks)
        templates = torch.nn.functional.avg_pool2d(masks.float(), 3, 1, 1)
        functions: dict[str, Callable[[], Any]] = {
            "rasterise 100 masks": lambda size=size: rasterize_polygons(polygons, boxes.numpy(), size),
            "encode 100 masks": lambda encoder=encoder, masks=masks: encoder.encode(masks),
            "decode 100 masks": lambda encoder=encoder, coeffs=coeffs: encoder.decode(coeffs),
            "100 bit masks": lambda templates=templates: paste_masks(templates, boxes, *OF_IMAGE),
            "100 encodings": lambda templates=templates: encode_templates(templates, boxes, *OF_IMAGE),
        }
        yield from rows_of(functions, size, args)


def polygon_objects(args: argparse.Namespace) -> Callable[[int], tuple[list[Any], Tensor]]:
    """A function that draws polygons and their (n, 4) boxes, in an image of 800 x 1333."""
    import numpy as np

    from benchmarks.annotations import read_polygons

    found = list(read_polygons(args.data))

    def draw(count: int) -> tuple[list[Any], Tensor]:
        chosen = [found[i] for i in np.resize(np.random.default_rng(0).permutation(len(found)), count)]
        scales = [np.array(OF_IMAGE[::-1]) / a.image_size[::-1] for a in chosen]
        polygons = [
            [(np.reshape(part, (-1, 2)) * scale).ravel() for part in a.segmentation]
            for a, scale in zip(chosen, scales, strict=True)
        ]
        boxes = np.array([np.multiply(a.box, np.tile(scale, 2)) for a, scale in zip(chosen, scales, strict=True)])
        return polygons, as_tensor(boxes.astype(np.float32))

    return draw


def encoder_of(dim: int, mask_size: int) -> Any:
    """What it says does not matter here; the DCT needs no fit and is as fast as PCA."""
    from meinst_d2.encoding import DCTEncoder

    return DCTEncoder(dim=dim, mask_size=mask_size).eval()


def as_tensor(array: Any) -> Tensor:
    import torch

    return torch.from_numpy(array)
