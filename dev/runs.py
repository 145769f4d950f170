"""What the scripts that train small models share: a run from its config, and pictures of it."""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.engine import default_setup
from detectron2.structures import Boxes, Instances
from matplotlib import pyplot as plt
from torch import nn

from meinst_d2.commands import fit as fit_command
from meinst_d2.commands import train as train_command
from meinst_d2.data.datasets import dataset_dicts
from meinst_d2.data.instances import from_dataset_dicts, make_templates
from meinst_d2.data.loader import TrainLoader, build_train_loader
from meinst_d2.engine import Trainer, check_before_start
from meinst_d2.evaluation import MEInstCOCOEvaluator
from meinst_d2.files import atomic_path
from meinst_d2.modeling.inference import postprocess


def load_config(config_file: str, overrides: list[str]) -> CfgNode:
    return train_command.load_config(argparse.Namespace(config_file=config_file, opts=overrides))


def fit(cfg: CfgNode, dataset: str, path: Path) -> None:
    """Fit the components that a config asks for."""
    fit_command.main(["--dataset", dataset, "--output", str(path), *train_command.fit_options(cfg)])


class Detectron2Trainer(Trainer):
    """Of Detectron2's own models, which learn from whole masks: everything else is as for ours."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, DatasetMapper(cfg, is_train=True))


def train(cfg: CfgNode) -> Trainer:
    """Train from the start; the trainer has the last evaluation's results."""
    check_before_start(cfg, eval_only=False, resume=False)
    cfg.freeze()
    (Path(cfg.OUTPUT_DIR) / "metrics.json").unlink(missing_ok=True)  # Detectron2 appends to it
    default_setup(cfg, argparse.Namespace(eval_only=False))
    ours = cfg.MODEL.META_ARCHITECTURE.startswith("MEInst")
    trainer = (Trainer if ours else Detectron2Trainer)(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@torch.no_grad()
def predict_dataset(cfg: CfgNode, model: nn.Module, dataset_name: str, limit: int | None = None) -> list[Instances]:
    """Detections on the first images of a registered dataset, at the images' size."""
    loader = build_detection_test_loader(cfg, dataset_name)
    return [model(inputs)[0]["instances"] for inputs in itertools.islice(loader, limit)]


def encoding_ceiling(encoder: Any, dataset_name: str) -> dict[str, Any]:
    """The AP that an encoding allows: of a detector that finds every object, its box and the best coefficients.

    Args:
        encoder: fitted; used in evaluation mode on the CPU.
        dataset_name: registered, with annotations.

    Returns:
        Detectron2's results: ``{"bbox": {"AP": ...}, "segm": {"AP": ...}}``.
    """
    evaluator = MEInstCOCOEvaluator(dataset_name, distributed=False)
    evaluator.reset()
    encoder = encoder.cpu().eval()
    for record in dataset_dicts(dataset_name):
        annotations = from_dataset_dicts([record])
        templates = make_templates(annotations, encoder.mask_size)
        kept = [annotations[i] for i in templates.kept.tolist()]
        classes = torch.tensor([annotation.category for annotation in kept], dtype=torch.int64)
        with torch.no_grad():
            masks = encoder.decode(encoder.encode(torch.from_numpy(templates.masks), classes), classes)
        detections = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor([annotation.box for annotation in kept]).reshape(-1, 4)),
            scores=torch.ones(len(kept)),
            pred_classes=classes,
            pred_masks=masks[:, None],
        )
        output = postprocess(detections, record["height"], record["width"], mask_output="template")
        evaluator.process([record], [{"instances": output}])
    return evaluator.evaluate()


def draw_losses(path: str | os.PathLike[str], metrics: str | os.PathLike[str]) -> None:
    """The losses of a run over its iterations, from Detectron2's metrics.json."""
    rows = [json.loads(line) for line in Path(metrics).read_text().splitlines()]
    rows = [row for row in rows if "total_loss" in row]
    names = sorted(name for name in rows[0] if name.startswith("loss_"))
    figure, axis = plt.subplots(figsize=(8, 4.5), layout="constrained")
    iterations = [row["iteration"] for row in rows]
    for name in ("total_loss", *names):
        axis.plot(iterations, [row[name] for row in rows], label=name, linewidth=2.5 if name == "total_loss" else 1.5)
    axis.set(xlabel="iteration", ylabel="loss")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
