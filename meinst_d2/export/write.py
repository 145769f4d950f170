"""Exporting, checking that the exported model detects what the model detects, and only then writing."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import ImageList, Instances
from torch import Tensor
from torch.export import Dim, ExportedProgram

from meinst_d2.data.image_files import read_image
from meinst_d2.data.shapes import ShapesConfig, draw_image
from meinst_d2.export.graph import INPUTS, OUTPUTS, OUTPUTS_WITHOUT_MASKS, DetectionGraph
from meinst_d2.files import atomic_path, require_writable
from meinst_d2.model_zoo.trained import TrainedModel
from meinst_d2.modeling.inference import postprocess
from meinst_d2.modeling.meta_arch import MEInstDetector

OPSET = 20
LEAST_OPSET = 19
"""The first with DeformConv."""
LEAST_TORCH = (2, 9)
"""Whose torch.onnx.export is the dynamo exporter and takes an ExportedProgram; older ones are refused."""

TOLERANCES = {"boxes": 1e-2, "scores": 1e-4, "masks": 1e-3}
"""Largest differences: pixels, probabilities, probabilities."""
GENERATED = ((96, 128), (160, 128), (128, 200))
"""(height, width) of the images that are drawn where none are given."""

Runner = Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]
"""(N, 3, H, W) float32 pixels and (N, 2) int64 sizes -> the outputs in their order."""


@dataclass(frozen=True)
class ExportSource:
    """A model with its metadata.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        metadata: strings by name: class_names (JSON list), mask_size, input_format, size_divisibility, min_size_test,
            max_size_test, score_threshold, paste_box.
        notes: sentences that the user should read.
    """

    model: MEInstDetector
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def make_source(trained: TrainedModel) -> ExportSource:
    """A trained model for export.

    Args:
        trained: its model is changed: float32, on the CPU.

    Raises:
        ValueError: the model is not of a kind that can be exported.
    """
    model, resize = trained.model, trained.resize
    if not isinstance(model, MEInstDetector):
        fix = "only MODEL.META_ARCHITECTURE MEInstDetector can; run others with Detectron2's DefaultPredictor"
        raise ValueError(f"{type(model).__name__} cannot be exported: {fix}")
    if not isinstance(resize, T.ResizeShortestEdge):
        raise ValueError("only models that are tested with the single augmentation ResizeShortestEdge can be exported")
    notes = list(trained.notes)
    if model.precision != "float32":
        notes.append(f"the model computes in {model.precision}; the exported one computes in float32")
        model.precision = "float32"
    encoder, refinement = model.proposal_generator.mask_encoder, model.proposal_generator.refinement
    if encoder is not None and not encoder.is_fitted:
        raise ValueError("the model has no mask components: give --weights that hold them, or MODEL.MEINST.COMPONENTS")
    metadata = {
        "class_names": json.dumps(trained.class_names),
        "mask_size": str((refinement or encoder).mask_size if encoder is not None else 0),
        "input_format": trained.image_format,
        "size_divisibility": str(max(model.backbone.size_divisibility, 1)),
        "min_size_test": str(resize.short_edge_length[0]),
        "max_size_test": str(resize.max_size),
        "score_threshold": str(model.proposal_generator.inference_rule.score_thresh),
        "paste_box": model.mask_paste_box if refinement is None else "enlarged",
    }
    return ExportSource(model.float().cpu().eval(), metadata, tuple(notes))


def require_exporter(file_format: str) -> None:
    """Raise an ImportError with the install command where torch is too old or a package is missing."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < LEAST_TORCH:
        raise ImportError(
            f"the export needs torch {'.'.join(map(str, LEAST_TORCH))} or newer, this is {torch.__version__}: "
            "pip install --upgrade torch torchvision"
        )
    needed = ("onnx", "onnxscript", "onnxruntime") if file_format == "onnx" else ()
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        fix = f"pip install {' '.join(missing)}, or pip install 'meinst_d2[export]'"
        raise ImportError(f"the export to ONNX needs {', '.join(missing)}: {fix}")


def export_model(
    source: ExportSource,
    path: str | os.PathLike[str],
    batches: Sequence[Sequence[Tensor]],
    file_format: str = "onnx",
    opset: int = OPSET,
) -> CheckResult:
    """Export a model, run the file, compare, and only if they agree put the file at ``path``.

    Args:
        source: the model and its metadata.
        path: of the file.
        batches: images (3, H, W) of pixels that the check runs on.
        file_format: one of :data:`FORMATS`.
        opset: of ONNX.

    Raises:
        CheckError: the exported model detects something else; nothing is written.
        ImportError: torch is too old, or a package is missing.
        OSError: ``path`` cannot be written.
        ValueError: an unknown format or an opset without deformable convolution.
    """
    if file_format not in FORMATS:
        raise ValueError(f"{file_format!r} is not a format: choose {' or '.join(FORMATS)}")
    if opset < LEAST_OPSET:
        raise ValueError(f"opset {opset} has no deformable convolution: choose {LEAST_OPSET} or more")
    require_exporter(file_format)
    require_writable(path)
    graph = DetectionGraph(source.model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code
        with atomic_path(path) as temporary:
            run = FORMATS[file_format](graph, temporary, source.metadata, opset)
            return check(source.model, run, batches)


def trace(graph: DetectionGraph, divisor: int) -> ExportedProgram:
    """The graph for any batch, height and width."""
    # torch.export takes a side of one cell for a constant: no level of the example may have one.
    coarsest = -(-max(graph.strides) // divisor)
    rows, columns = 3 * coarsest * divisor, 5 * coarsest * divisor
    example = torch.rand(2, 3, rows, columns) * 255
    sizes = torch.tensor([[rows, columns], [rows - 3, columns - divisor]])
    batch, height, width = Dim("batch", min=1), Dim("height", min=1), Dim("width", min=1)
    shapes = ({0: batch, 2: divisor * height, 3: divisor * width}, {0: batch})
    with torch.no_grad():
        return torch.export.export(graph, (example, sizes), dynamic_shapes=shapes, strict=False)


def write_onnx(graph: DetectionGraph, path: Path, metadata: dict[str, str], opset: int) -> Runner:
    """Write one ONNX file, metadata included, and open it in onnxruntime."""
    import onnx
    import onnxruntime

    program = trace(graph, int(metadata["size_divisibility"]))
    inputs, outputs = list(INPUTS), list(graph.output_names)
    exported: Any = torch.onnx.export(
        program, dynamo=True, opset_version=opset, input_names=inputs, output_names=outputs, verbose=False
    )
    model = exported.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save_model(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images, image_sizes: session.run(outputs, {"images": images, "image_sizes": image_sizes})


def write_exported_program(graph: DetectionGraph, path: Path, metadata: dict[str, str], opset: int) -> Runner:
    """Write a torch.export archive, metadata as ``extra_files``, and load it again; ``opset`` does not matter."""
    program = trace(graph, int(metadata["size_divisibility"]))
    with open(path, "wb") as file:  # torch.export asks names to end in .pt2
        torch.export.save(program, file, extra_files=metadata)
    with open(path, "rb") as file:
        module = torch.export.load(file).module()

    @torch.no_grad()
    def run(images: np.ndarray, image_sizes: np.ndarray) -> list[np.ndarray]:
        return [output.numpy() for output in module(torch.from_numpy(images), torch.from_numpy(image_sizes))]

    return run


FORMATS: dict[str, Callable[..., Runner]] = {"onnx": write_onnx, "exported_program": write_exported_program}


class CheckError(RuntimeError):
    """The exported model differs from the model, or nothing was detected to compare."""


@dataclass(frozen=True)
class CheckResult:
    """How much was compared, and the largest differences by the names of :data:`TOLERANCES`."""

    images: int
    detections: int
    differences: dict[str, float]

    def table(self) -> str:
        """For people."""
        title = f"images checked: {self.images}, detections compared: {self.detections}"
        rows = [title, f"{'':8}{'difference':>12}{'tolerance':>12}"]
        rows += [f"{name:8}{value:12.2e}{TOLERANCES[name]:12.0e}" for name, value in self.differences.items()]
        return "\n".join(rows)


def check_batches(paths: Sequence[str | os.PathLike[str]], metadata: Mapping[str, str]) -> list[list[Tensor]]:
    """The first image alone, then all in pairs, so that batches, sizes and padding differ.

    Args:
        paths: image files; none for drawings of shapes.
        metadata: of :class:`ExportSource`.

    Returns:
        (3, H, W) uint8 each, resized as at test time, channels in the model's order.

    Raises:
        OSError: a file is missing or not an image.
    """
    read = (read_image(os.fspath(path), "RGB") for path in paths)
    drawn = (draw_image(ShapesConfig(height=h, width=w), (seed,))[0] for seed, (h, w) in enumerate(GENERATED))
    resize = T.ResizeShortestEdge(int(metadata["min_size_test"]), int(metadata["max_size_test"]))
    images = []
    for pixels in read if paths else drawn:
        pixels = resize.get_transform(pixels).apply_image(pixels)
        pixels = pixels[:, :, ::-1] if metadata["input_format"] == "BGR" else pixels
        images.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
    return [images[:1], *(images[i : i + 2] for i in range(0, len(images), 2))]


def pad_batch(images: Sequence[Tensor], divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as the graph takes them.

    Args:
        images: (3, H, W) each, pixels.
        divisor: what height and width become multiples of.

    Returns:
        (N, 3, H, W) float32 with zeros below and to the right, and (N, 2) int64 sizes.
    """
    padded = ImageList.from_tensors([image.float() for image in images], divisor)
    return padded.tensor.numpy(), np.array(padded.image_sizes, np.int64)


@torch.no_grad()
def expected_detections(model: MEInstDetector, images: Sequence[Tensor]) -> list[Instances]:
    """What the model itself detects in a batch, with templates instead of pasted masks."""
    padded = model.preprocess_image([{"image": image} for image in images])
    detections, _ = model.proposal_generator(padded, model.backbone(padded.tensor))
    pairs = zip(detections, padded.image_sizes, strict=True)
    return [postprocess(found, *size, model.mask_paste_box, "template") for found, size in pairs]


def check(model: MEInstDetector, run: Runner, batches: Sequence[Sequence[Tensor]]) -> CheckResult:
    """Compare an exported model with the model.

    Args:
        model: in evaluation mode, float32.
        run: runs the exported one.
        batches: images (3, H, W) of pixels.

    Raises:
        CheckError: they differ by more than :data:`TOLERANCES`, or there was nothing to compare.
    """
    has_masks = model.proposal_generator.mask_encoder is not None
    names = OUTPUTS if has_masks else OUTPUTS_WITHOUT_MASKS
    worst = {name: 0.0 for name in TOLERANCES if has_masks or name != "masks"}
    num_detections = 0
    for images in batches:
        batch, sizes = pad_batch(images, max(model.backbone.size_divisibility, 1))
        outputs = dict(zip(names, run(batch, sizes), strict=True))
        for index, expected in enumerate(expected_detections(model, images)):
            mine = outputs["image_index"] == index
            num_detections += len(expected)
            differences = compare({k: v[mine] for k, v in outputs.items()}, expected, f"{tuple(images[index].shape)}")
            worst = {name: max(value, differences[name]) for name, value in worst.items()}
    result = CheckResult(sum(map(len, batches)), num_detections, worst)
    if not num_detections:
        raise CheckError(
            f"the model detects nothing in the images of the check ({result.images}), so that nothing was compared: "
            "give images of objects that it knows with --image, or lower MODEL.MEINST.SCORE_THRESH_TEST"
        )
    too_far = [name for name, value in worst.items() if not value <= TOLERANCES[name]]
    if too_far:
        raise CheckError(f"the exported model differs in {' and '.join(too_far)}:\n{result.table()}")
    return result


def compare(outputs: dict[str, np.ndarray], expected: Instances, image: str) -> dict[str, float]:
    """Largest differences of one image, each detection with that of its class whose box and score are nearest.

    Equal scores may come in either order, so the order does not count. Equal boxes are those that are clipped alike.

    Raises:
        CheckError: another number of detections.
    """
    found = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in outputs.items()}
    if len(found["scores"]) != len(expected):
        raise CheckError(
            f"the exported model finds {len(found['scores'])} objects and the model {len(expected)} in an image of "
            f"shape {image}"
        )
    if not len(expected):
        return dict.fromkeys(TOLERANCES, 0.0)
    gaps = (found["boxes"][:, None] - expected.pred_boxes.tensor).abs().amax(2)  # (n, n)
    gaps[found["classes"][:, None] != expected.pred_classes] = float("inf")
    scores = (found["scores"][:, None] - expected.scores).abs()  # (n, n)
    partner = (gaps + scores).argmin(1)
    gap, scores = gaps.gather(1, partner[:, None]), scores.gather(1, partner[:, None])
    if len(partner.unique()) < len(partner):
        gap = torch.full_like(gap, float("inf"))  # two of them are the same detection
    differences = {"boxes": float(gap.max()), "scores": float(scores.max()), "masks": 0.0}
    if "masks" in found:
        differences["masks"] = float((found["masks"] - expected.pred_mask_templates[partner]).abs().max())
        apart = (found["mask_boxes"] - expected.pred_mask_boxes.tensor[partner]).abs().max()
        differences["boxes"] = max(differences["boxes"], float(apart))
    return differences
