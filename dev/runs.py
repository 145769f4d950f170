"""What the scripts that train small models share: a run from its config, and pictures of it."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.checkpoint.resume import TAG
from meinst_d2.commands import fit as fit_command
from meinst_d2.commands import train as train_command
from meinst_d2.data.augmentation import build_augmentations
from meinst_d2.data.datasets import dataset_dicts
from meinst_d2.data.image_files import read_image
from meinst_d2.data.instances import from_dataset_dicts, make_templates
from meinst_d2.data.loader import TrainLoader, build_train_loader
from meinst_d2.engine import Trainer, check_before_start
from meinst_d2.engine.launch import default_setup
from meinst_d2.evaluation import MEInstCOCOEvaluator
from meinst_d2.files import atomic_path
from meinst_d2.modeling.inference import postprocess
from meinst_d2.visualization.drawing import MaskVisualizer


def load_config(config_file: str, overrides: list[str]) -> CfgNode:
    return train_command.load_config(argparse.Namespace(config_file=config_file, opts=overrides))


def fit(cfg: CfgNode, dataset: str, path: Path) -> None:
    """Fit the components that a config asks for."""
    fit_command.main(["--dataset", dataset, "--output", str(path), *train_command.fit_options(cfg)])


def is_ours(cfg: CfgNode) -> bool:
    """Whether a model has our mask branch; others are Detectron2's own."""
    return cfg.MODEL.META_ARCHITECTURE.startswith("MEInst")


class TrainingClock(HookBase):
    """Counts the seconds of iterations, without evaluations and checkpoints.

    It is a part of checkpoints: a run that is resumed counts every iteration once, and none that was lost.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        self.seconds += time.perf_counter() - self._start

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.seconds = state["seconds"]


class TimedTrainer(Trainer):
    """Has a clock, the first of the hooks: the others' time is not that of an iteration."""

    def build_hooks(self) -> list[HookBase | None]:
        self.clock = TrainingClock()
        return [self.clock, *super().build_hooks()]


class Detectron2Trainer(TimedTrainer):
    """Of Detectron2's own models, which learn from whole masks: the rest is as for ours, copy-paste apart."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, DatasetMapper(cfg, is_train=True, augmentations=build_augmentations(cfg)))


def train(cfg: CfgNode, *, resume: bool = False) -> TimedTrainer:
    """Train from the start, or from the last checkpoint if there is one; the trainer has the last evaluation's results.

    Args:
        cfg: frozen here.
        resume: only with the config that the checkpoint was made with.
    """
    folder = Path(cfg.OUTPUT_DIR)
    resume = resume and (folder / TAG).is_file()
    opened = check_before_start(cfg, eval_only=False, resume=resume)
    cfg.freeze()
    if not resume:
        (folder / "metrics.json").unlink(missing_ok=True)  # Detectron2 appends to it
    for name in ("detectron2", "fvcore", "meinst_d2"):
        logging.getLogger(name).handlers.clear()  # of an earlier run in this process, whose log this is not
    default_setup(cfg, argparse.Namespace(eval_only=False))
    trainer = (TimedTrainer if is_ours(cfg) else Detectron2Trainer)(cfg, opened=opened)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def load_model(cfg: CfgNode, weights: str) -> nn.Module:
    """A trained model, in evaluation mode."""
    model = build_model(cfg).eval()
    MEInstCheckpointer(model).load(weights)
    return model


@torch.no_grad()
def predict(cfg: CfgNode, model: nn.Module, records: Iterable[dict[str, Any]]) -> list[Instances]:
    """Detections on images in Detectron2's dataset format, at their size."""
    mapper = DatasetMapper(cfg, is_train=False)
    return [model([mapper(record)])[0]["instances"].to("cpu") for record in records]


@torch.no_grad()
def time_predictions(
    models: Mapping[str, tuple[CfgNode, nn.Module]], records: Sequence[dict[str, Any]]
) -> dict[str, list[float]]:
    """Seconds from an image at the network's size to detections with masks at the image's, one image at a time.

    The models take turns at every image, so that whatever else the machine does slows all of them.

    Args:
        models: configs and models by name.
        records: of the images, in Detectron2's dataset format.
    """
    mappers = {name: DatasetMapper(cfg, is_train=False) for name, (cfg, _) in models.items()}
    times: dict[str, list[float]] = {name: [] for name in models}
    for number, record in enumerate((records[0], *records)):
        for name, (_, model) in models.items():
            inputs = [mappers[name](record)]
            wait_for_gpu()
            start = time.perf_counter()
            model(inputs)
            wait_for_gpu()
            if number > 0:  # the first call is slow
                times[name].append(time.perf_counter() - start)
    return times


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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


def draw_comparison(
    path: str | os.PathLike[str],
    records: Sequence[dict[str, Any]],
    detections: Mapping[str, Sequence[Instances]],
    dataset_name: str,
    *,
    score_thresh: float = 0.4,
    width: int = 320,
) -> None:
    """A row for every image: the ground truth, and the detections of several models.

    Args:
        path: the picture.
        records: of the images, in Detectron2's dataset format.
        detections: of each image, on the CPU and at the image's size, by the name of the model.
        dataset_name: where class names and colours come from.
        score_thresh: detections below are left out.
        width: of one drawing, in pixels.
    """
    metadata, columns = MetadataCatalog.get(dataset_name), 1 + len(detections)
    height = sum(width * record["height"] / record["width"] for record in records)
    figure = Figure(figsize=(columns * width / 100, height / 100 + 0.4), layout="constrained")
    axes = figure.subplots(len(records), columns, squeeze=False)
    for number, record in enumerate(records):
        image = read_image(record["file_name"], "RGB")
        canvas = functools.partial(MaskVisualizer, image, metadata, scale=width / image.shape[1])
        pictures = [canvas().draw_dataset_dict(dict(record))]
        for of_images in detections.values():
            found = of_images[number]
            pictures.append(canvas().draw_instance_predictions(found[found.scores > score_thresh]))
        for axis, picture in zip(axes[number], pictures, strict=True):
            axis.imshow(picture.get_image())
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("ground truth", *detections), strict=True):
        axis.set_title(title, fontsize=10, parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
