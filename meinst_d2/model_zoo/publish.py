"""A trained model as one small file that says everything about itself."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from meinst_d2 import __version__
from meinst_d2.checkpoint.checkpointer import CheckpointInfo, info_of
from meinst_d2.checkpoint.download import HASH_LENGTH
from meinst_d2.checkpoint.readers import read_checkpoint, weights_to_use
from meinst_d2.files import atomic_path
from meinst_d2.model_zoo.verify import build_on_meta, config_from_text, require_same_tensors
from meinst_d2.modeling.published_names import settle_names

PRIVATE_KEYS = {"MODEL.WEIGHTS": "", "MODEL.MEINST.COMPONENTS": "", "OUTPUT_DIR": "./output"}
"""Paths of the machine that trained; the file carries what was in them."""

ROW = "| {name} | {data} | {iterations} | {bbox} | {segm} | {file} |"


def publish_run(run: str | os.PathLike[str], output: str | os.PathLike[str], name: str) -> tuple[Path, str]:
    """Write the last checkpoint of a run as ``NAME-SHA256.pth``.

    The file holds ``model`` (the weights, mask components included) and ``meinst``: what
    :class:`~meinst_d2.checkpoint.checkpointer.CheckpointInfo` says, ``config`` (text), ``metrics``, ``iteration``,
    ``name`` and ``versions``. It holds tensors and plain values only, and the same run gives the same bytes.

    Args:
        run: the OUTPUT_DIR of a finished run.
        output: a folder.
        name: what to call the model.

    Returns:
        The file, and its row for MODEL_ZOO.md.

    Raises:
        OSError: a file of the run is missing, or the folder refuses the new one.
        ValueError: the weights do not belong to the run's config, or the name is no file name.
    """
    if not name or name != os.path.basename(name) or "|" in name:
        raise ValueError(f"{name!r} cannot name a file: choose letters, digits, - and _")
    run = Path(run)
    cfg = config_from_text(_read(run / "config.yaml"), run / "config.yaml")
    cfg.merge_from_list([item for pair in PRIVATE_KEYS.items() for item in pair])
    weights = _last_checkpoint(run)
    content = read_checkpoint(weights)
    state = weights_to_use(content)
    settle_names(state)
    require_same_tensors(build_on_meta(cfg), state, weights)
    iteration = content.get("iteration")
    about = CheckpointInfo.from_config(cfg).content | info_of(content)
    about |= {
        "name": name,
        "config": cfg.dump(),
        "metrics": last_metrics(run / "metrics.json"),
        "iteration": iteration if isinstance(iteration, int) else None,
        "versions": _versions(),
    }
    buffer = io.BytesIO()  # a file's own name would be part of its bytes
    tensors = {key: torch.as_tensor(value).clone() for key, value in state.items()}
    torch.save({"model": tensors, "meinst": about}, buffer)
    path = Path(output) / f"{name}-{hashlib.sha256(buffer.getbuffer()).hexdigest()[:HASH_LENGTH]}.pth"
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return path, zoo_row(path, about, cfg.DATASETS.TRAIN)


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: name the OUTPUT_DIR of a finished run")
    return path.read_text()


def _last_checkpoint(run: Path) -> Path:
    final = run / "model_final.pth"
    return final if final.is_file() else run / _read(run / "last_checkpoint").strip()


def last_metrics(path: Path) -> dict[str, float]:
    """The last evaluation in a ``metrics.json``: box and mask AP and their variants by name, where finite.

    Args:
        path: JSON lines, as Detectron2's JSONWriter writes them; may be missing.
    """
    found: dict[str, float] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:  # a run that was killed while it wrote
            continue
        if isinstance(row, dict) and any(key.endswith(("bbox/AP", "segm/AP")) for key in row):
            found = {
                key: value
                for key, value in row.items()
                if ("bbox/" in key or "segm/" in key) and isinstance(value, float) and math.isfinite(value)
            }
    return found


def _versions() -> dict[str, str]:
    found = {"meinst_d2": __version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "detectron2"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a checkout on the path
            found[package] = "unknown"
    return found


def zoo_row(path: Path, about: Mapping[str, Any], datasets: tuple[str, ...]) -> str:
    """The row of MODEL_ZOO.md for a published file."""
    metrics = about["metrics"]

    def best(task: str) -> str:
        values = [value for key, value in metrics.items() if key.endswith(f"{task}/AP")]
        return f"{values[0]:.1f}" if values else "-"

    iteration = about["iteration"]
    return ROW.format(
        name=about["name"],
        data=", ".join(datasets) or "-",
        iterations="-" if iteration is None else iteration + 1,
        bbox=best("bbox"),
        segm=best("segm"),
        file=f"`{path.name}`, {path.stat().st_size / 1e6:.1f} MB",
    )
