"""Exporting, checking and only then writing."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor
from torch.export import Dim, ExportedProgram

from meinst_d2.export.check import CheckResult, Runner, check
from meinst_d2.export.graph import INPUTS, DetectionGraph
from meinst_d2.files import atomic_path, require_writable
from meinst_d2.model_zoo.trained import TrainedModel
from meinst_d2.modeling.meta_arch import MEInstDetector

OPSET = 20
LEAST_OPSET = 19
"""The first with DeformConv."""
LEAST_TORCH = (2, 9)
"""Whose torch.onnx.export is the dynamo exporter and takes an ExportedProgram; older ones are refused."""


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
        raise ValueError(
            f"{type(model).__name__} cannot be exported: only MODEL.META_ARCHITECTURE MEInstDetector can; run others "
            "with Detectron2's DefaultPredictor"
        )
    if not isinstance(resize, T.ResizeShortestEdge):
        raise ValueError("only models that are tested with the single augmentation ResizeShortestEdge can be exported")
    notes = list(trained.notes)
    if model.precision != "float32":
        notes.append(f"the model computes in {model.precision}; the exported one computes in float32")
        model.precision = "float32"
    encoder = model.proposal_generator.mask_encoder
    if encoder is not None and not encoder.is_fitted:
        raise ValueError("the model has no mask components: give --weights that hold them, or MODEL.MEINST.COMPONENTS")
    metadata = {
        "class_names": json.dumps(trained.class_names),
        "mask_size": str(encoder.mask_size if encoder is not None else 0),
        "input_format": trained.image_format,
        "size_divisibility": str(max(model.backbone.size_divisibility, 1)),
        "min_size_test": str(resize.short_edge_length[0]),
        "max_size_test": str(resize.max_size),
        "score_threshold": str(model.proposal_generator.inference_rule.score_thresh),
        "paste_box": model.mask_paste_box,
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
        raise ImportError(
            f"the export to ONNX needs {', '.join(missing)}: pip install {' '.join(missing)}, or pip install "
            "'meinst_d2[export]'"
        )


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
