"""Exporting, checking and only then writing."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from meinst_d2.export.check import CheckResult, Runner, check
from meinst_d2.export.graph import INPUTS, OUTPUTS, DetectionGraph
from meinst_d2.export.source import ExportSource
from meinst_d2.files import atomic_path, require_writable

OPSET = 20
LEAST_OPSET = 19
"""The first with DeformConv."""
LEAST_TORCH = (2, 9)
"""Whose torch.onnx.export is the dynamo exporter and takes an ExportedProgram; older ones are refused."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_exporter(file_format: str) -> None:
    """Raise an ImportError with the install command where torch is too old or a package is missing."""
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < LEAST_TORCH:
        raise ImportError(
            f"the export needs torch {'.'.join(map(str, LEAST_TORCH))} or newer, this is {torch.__version__}: "
            "pip install --upgrade torch torchvision"
        )
    missing = [name for name in ONNX_PACKAGES if file_format == "onnx" and importlib.util.find_spec(name) is None]
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
        raise ValueError(f"the format {file_format!r} is none of {', '.join(FORMATS)}")
    if opset < LEAST_OPSET:
        raise ValueError(f"opset {opset} has no deformable convolution: choose {LEAST_OPSET} or more")
    require_exporter(file_format)
    require_writable(path)
    graph = DetectionGraph(source.model).eval()
    names = OUTPUTS if graph.mask_encoder is not None else tuple(n for n in OUTPUTS if "mask" not in n)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own code
        program = trace(graph, int(source.metadata["size_divisibility"]))
        with atomic_path(path) as temporary:
            runner = FORMATS[file_format](program, temporary, names, source.metadata, opset)
            result = check(source.model, runner, batches)
    return result


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


def write_onnx(
    program: ExportedProgram, path: Path, names: Sequence[str], metadata: dict[str, str], opset: int
) -> Runner:
    """Write one ONNX file, metadata included, and open it in onnxruntime."""
    import onnx
    import onnxruntime

    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=list(INPUTS),
        output_names=list(names),
        verbose=False,
    )
    model = exported.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save_model(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        outputs = session.run(list(names), {"images": images, "image_sizes": image_sizes})
        return dict(zip(names, outputs, strict=True))

    return run


def write_exported_program(
    program: ExportedProgram, path: Path, names: Sequence[str], metadata: dict[str, str], opset: int
) -> Runner:
    """Write a torch.export archive, metadata as ``extra_files``, and load it again."""
    with open(path, "wb") as file:  # torch.export asks names to end in .pt2
        torch.export.save(program, file, extra_files=metadata)
    with open(path, "rb") as file:
        module = torch.export.load(file).module()

    @torch.no_grad()
    def run(images: np.ndarray, image_sizes: np.ndarray) -> dict[str, np.ndarray]:
        outputs = module(torch.from_numpy(images), torch.from_numpy(image_sizes))
        return {name: value.numpy() for name, value in zip(names, outputs, strict=True)}

    return run


FORMATS: dict[str, Callable[..., Runner]] = {"onnx": write_onnx, "exported_program": write_exported_program}
