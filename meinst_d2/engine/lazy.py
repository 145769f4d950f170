"""Training and evaluation from a LazyConfig, with the loader, step and checkpointer of the other path."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.checkpoint.compatibility import CLASS_LAYER
from meinst_d2.engine.averaging import WeightAverage
from meinst_d2.engine.setup import default_setup
from meinst_d2.engine.step import TrainStep
from meinst_d2.engine.trainer import distribute
from meinst_d2.engine.validation import Validation
from meinst_d2.modeling.retinanet import further_state


def run_lazy(args: argparse.Namespace) -> Any:
    """What meinst train does with a .py config file.

    The config has ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` (``train``, ``test``, ``evaluator``) and
    ``train``, as configs/lazy/meinst_r50.py; overrides are KEY=VALUE.

    Args:
        args: of Detectron2's default_argument_parser.

    Returns:
        The results of the last evaluation.
    """
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    default_setup(cfg, args)
    model = instantiate(cfg.model).to(cfg.train.device)
    if args.eval_only:
        checkpointer = MEInstCheckpointer(model, cfg.train.output_dir)
        checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
        return evaluate(cfg, model)
    return train(cfg, model, resume=args.resume)


def evaluate(cfg: DictConfig, model: nn.Module) -> Any:
    """Run the model over ``dataloader.test`` and print what ``dataloader.evaluator`` says; {} without one."""
    if "evaluator" not in cfg.dataloader:
        return {}
    results = inference_on_dataset(model, instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator))
    print_csv_format(results)
    return results


def train(cfg: DictConfig, model: nn.Module, *, resume: bool) -> Any:
    """Train for ``train.max_iter`` iterations, evaluating and saving on the way and at the end."""
    logging.getLogger(__name__).info("Model:\n%s", model)
    cfg.optimizer.params.model = model
    optimizer: torch.optim.Optimizer = instantiate(cfg.optimizer)
    loader = instantiate(cfg.dataloader.train)
    scale_loss = cfg.model.get("precision") == "float16"
    seed, folder = cfg.train.seed, cfg.train.output_dir
    trainer = TrainStep(distribute(model), loader, optimizer, seed=seed, scale_loss=scale_loss, failures=folder)
    checkpointer = trainer.checkpointer = MEInstCheckpointer(model, folder, trainer=trainer, **further_state(model))
    average = WeightAverage(model, cfg.train.ema_decay) if cfg.train.get("ema_decay") else None
    if average is not None:
        checkpointer.add_checkpointable("ema", average)
    results: dict[str, Any] = {}

    def evaluate_and_keep() -> Any:
        results.clear()
        results.update(evaluate(cfg, model if average is None else average.averaged_model))
        return results

    def keep_best(metric: float, iteration: int) -> None:
        best = model if average is None else average.averaged_model
        checkpointer.save_weights("model_best", best, iteration=iteration, best=metric)

    trainer.register_hooks(
        [
            average,
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.PeriodicCheckpointer(checkpointer, cfg.train.checkpoint_period) if comm.is_main_process() else None,
            Validation(
                evaluate_and_keep,
                period=cfg.train.eval_period,
                metric=cfg.train.get("best_metric", "segm/AP") if "evaluator" in cfg.dataloader else "",
                patience=cfg.train.get("patience", 0),
                keep_best=keep_best,
            ),
            hooks.PeriodicWriter(default_writers(folder, cfg.train.max_iter), period=cfg.train.log_period)
            if comm.is_main_process()
            else None,
        ]
    )
    resumes = resume and checkpointer.has_checkpoint()
    checkpointer.may_start_anew = () if resumes else (CLASS_LAYER,)
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    start = trainer.iter + 1 if resumes else 0
    loader.seek(start)
    trainer.train(start, cfg.train.max_iter)
    return results
