"""A trained model as one small file that says everything about itself."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import detectron2
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from meinst_d2 import __version__
from meinst_d2.checkpoint.checkpointer import HASH_LENGTH, CheckpointInfo, info_of
from meinst_d2.files import atomic_path
from meinst_d2.model_zoo.trained import RUN_CONFIG, build, read_weights, require_same_tensors
from meinst_d2.model_zoo.zoo import config_from_string

PRIVATE_KEYS = {
    "MODEL.WEIGHTS": "",
    "MODEL.MEINST.COMPONENTS": "",
    "MODEL.TIMM.CHECKPOINT": "",
    "OUTPUT_DIR": "./output",
}
"""Paths of the machine that trained; the file carries what was in them."""
BEST_FIRST = ("model_best.pth", "model_final.pth")


def publish_run(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str,
    weights: str | None = None,
    *,
    half: bool = False,
) -> tuple[Path, str, Path]:
    """Write weights of a run as ``NAME-SHA256.pth``, or in half precision as ``NAME-SHA256.safetensors``.

    The file holds ``model`` (the weights, mask components included) and ``meinst``: what
    :class:`~meinst_d2.checkpoint.checkpointer.CheckpointInfo` says, ``config`` (a string), ``iteration`` and its
    ``metrics``, ``name`` and ``versions``. The same run gives the same bytes.

    Args:
        run: the OUTPUT_DIR of a finished run.
        output: a folder.
        name: what to call the model.
        weights: a file of the run; by default ``model_best.pth``, ``model_final.pth`` or the last checkpoint, the first
            that there is.
        half: whether to keep 16 bits of each number.

    Returns:
        The file, its row for MODEL_ZOO.md, and where its weights are from.

    Raises:
        OSError: a file of the run is missing, or the folder refuses the new one.
        ValueError: the weights do not belong to the run's config, or the name cannot name a file.
    """
    if not name or name != os.path.basename(name) or "|" in name:
        raise ValueError(f"{name!r} cannot name a file: choose letters, digits, - and _")
    run = Path(run)
    cfg = config_from_string(_read(run / RUN_CONFIG), run / RUN_CONFIG)
    cfg.merge_from_list([item for pair in PRIVATE_KEYS.items() for item in pair])
    weights = weights or next((x for x in BEST_FIRST if (run / x).is_file()), None)
    read, path = read_weights(run / (weights or _read(run / "last_checkpoint").strip()))
    state = read["model"]
    iteration = read["iteration"] if isinstance(read.get("iteration"), int) else None
    require_same_tensors(build(cfg, "meta"), state, path)
    versions = {"meinst_d2": __version__, "python": platform.python_version()}
    versions |= {package.__name__: str(package.__version__) for package in (torch, torchvision, detectron2)}
    about = CheckpointInfo.from_config(cfg).content | info_of(read)
    metrics = metrics_of(run / "metrics.json", iteration)
    about |= {"name": name, "config": cfg.dump(), "metrics": metrics, "iteration": iteration, "versions": versions}
    if half:
        content, suffix = safetensors_of({key: _half(value) for key, value in state.items()}, about), "safetensors"
    else:
        buffer = io.BytesIO()  # a file's own name would be part of its bytes
        torch.save({"model": {key: value.clone() for key, value in state.items()}, "meinst": about}, buffer)
        content, suffix = buffer.getvalue(), "pth"
    target = Path(output) / f"{name}-{hashlib.sha256(content).hexdigest()[:HASH_LENGTH]}.{suffix}"
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)
    columns = [name, ", ".join(cfg.DATASETS.TRAIN) or "-", "-" if iteration is None else str(iteration + 1)]
    for task in ("bbox", "segm"):
        columns.append(next((f"{value:.1f}" for key, value in metrics.items() if key.endswith(f"{task}/AP")), "-"))
    columns.append(f"`{target.name}`, {target.stat().st_size / 1e6:.1f} MB")
    return target, f"| {' | '.join(columns)} |", Path(path)


def safetensors_of(state: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """Weights by name as the content of a file, with what JSON can hold beside them."""
    metadata = {"format": "pt", "meinst": json.dumps(dict(about))}
    return bytes(safetensors.torch.save({name: value.contiguous() for name, value in state.items()}, metadata))


def _half(value: Tensor) -> Tensor:
    return value.half() if value.is_floating_point() else value


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name the OUTPUT_DIR of a finished run")
    return path.read_text()


def metrics_of(path: Path, iteration: int | None) -> dict[str, float]:
    """The evaluation of an iteration's weights: box and mask AP and their variants by name, where finite.

    Args:
        path: ``metrics.json``, JSON lines as Detectron2's JSONWriter writes them; may be missing.
        iteration: from 0. The evaluation after the last one is written under the next number. None for that of the end.
    """
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):  # of a run that was killed while it wrote
            row = json.loads(line)
            if isinstance(row, dict) and any(key.endswith(("bbox/AP", "segm/AP")) for key in row):
                rows.append(row)
    if iteration is not None:
        rows = [row for number in (iteration + 1, iteration) for row in rows if row.get("iteration") == number]
    return {
        key: value
        for key, value in (rows[-1] if rows else {}).items()
        if ("bbox/" in key or "segm/" in key) and isinstance(value, float) and math.isfinite(value)
    }
