"""Train or evaluate a model. The flags are those of Detectron2's tools/train_net.py."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

import meinst_d2.modeling  # noqa: F401  registers the model
from meinst_d2 import add_meinst_config
from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer, info_of
from meinst_d2.checkpoint.resume import OpenedCheckpoint
from meinst_d2.commands import fit as fit_command
from meinst_d2.commands import reporting
from meinst_d2.config_file import merge_config_file, merge_overrides
from meinst_d2.data.datasets import counting_classes, register_coco
from meinst_d2.encoding import MASK_ENCODER_REGISTRY
from meinst_d2.engine import Trainer, check_before_start, settle_seed
from meinst_d2.engine.launch import default_setup, launch
from meinst_d2.engine.lazy import as_yaml, in_lazy_words, lazy_trainer
from meinst_d2.model_zoo import get_config_file
from meinst_d2.model_zoo.zoo import override_lazy
from meinst_d2.modeling.timm_backbone import settle_pixels

EPILOG = """examples:
  meinst train --num-gpus 8 --config-file configs/MEInst_R_50_1x.yaml
  meinst train --config-file configs/MEInst_R_50_1x.yaml --eval-only MODEL.WEIGHTS model.pth
  meinst train --config-file configs/MEInst_R_50_1x.yaml \\
      --coco-dataset mine_train=mine/train.json:mine/images --coco-dataset mine_val=mine/val.json:mine/images \\
      DATASETS.TRAIN "('mine_train',)" DATASETS.TEST "('mine_val',)" MODEL.MEINST.COMPONENTS mine/components.npz
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = default_argument_parser(epilog=EPILOG)
    parser.prog, parser.description = "meinst train", __doc__
    form, what = "NAME=ANNOTATIONS.json:IMAGES", "register a dataset in COCO's format; repeat"
    parser.add_argument("--coco-dataset", action="append", default=[], metavar=form, help=what)
    return parser.parse_args(argv)


def load_config(args: argparse.Namespace) -> CfgNode:
    """Defaults, then the file, then the overrides; what none of them sets follows the dataset and the backbone."""
    cfg = get_cfg()
    add_meinst_config(cfg)
    with counting_classes(cfg):
        if args.config_file:
            merge_config_file(cfg, args.config_file)
        merge_overrides(cfg, args.opts)
    settle_pixels(cfg)
    return cfg


def load(args: argparse.Namespace) -> tuple[CfgNode, Any]:
    """The config, and the LazyConfig that it is made of, or None; the datasets of the command line are registered."""
    for dataset in args.coco_dataset:
        register_coco(dataset)
    if not args.config_file.endswith(".py"):
        return load_config(args), None
    if not os.path.isfile(args.config_file):
        raise FileNotFoundError(f"the config file {args.config_file} does not exist: name one that exists")
    lazy = override_lazy(LazyConfig.load(args.config_file), args.opts)
    return as_yaml(lazy), lazy


def check(args: argparse.Namespace) -> OpenedCheckpoint | None:
    """Check what can be checked before the start; returns the starting weights for a run in the only process."""
    cfg, lazy = load(args)
    processes = max(args.num_gpus, 1) * args.num_machines
    try:
        opened = check_before_start(cfg, eval_only=args.eval_only, resume=args.resume, num_processes=processes)
    except ValueError as error:
        raise error if lazy is None else ValueError(in_lazy_words(str(error))) from error
    return opened if processes == 1 else None


def train(args: argparse.Namespace, opened: OpenedCheckpoint | None = None) -> Any:
    """What every process does; ``opened`` is the checkpoint to start from, where it has been read already.

    Returns:
        The results of the last evaluation.
    """
    cfg, lazy = load(args)
    trainer_class = Trainer if lazy is None else lazy_trainer(lazy)
    cfg.SEED = settle_seed(cfg.SEED, cfg.OUTPUT_DIR, args.resume)
    if lazy is not None:
        lazy.train.seed = cfg.SEED
    cfg.freeze()
    default_setup(cfg if lazy is None else lazy, args)
    if args.eval_only:
        model = trainer_class.build_model(cfg)
        checkpointer = MEInstCheckpointer(model, cfg.OUTPUT_DIR, opened=opened)
        names = info_of(checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)).get("class_names")
        evaluators = [trainer_class.build_evaluator(cfg, dataset, names) for dataset in cfg.DATASETS.TEST]
        results = trainer_class.test(cfg, model, evaluators)
        if cfg.TEST.AUG.ENABLED:
            results = {**results, **trainer_class.test_with_tta(cfg, model, names)}
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = trainer_class(cfg, opened=opened)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if cfg.TEST.AUG.ENABLED:
        results = {**results, **trainer_class.test_with_tta(cfg, trainer.evaluated_model)}
    return results


def fit_options(cfg: CfgNode) -> list[str]:
    """The options of meinst fit that make components as the config asks for them."""
    meinst = cfg.MODEL.MEINST
    options = ["--dim", meinst.DIM_MASK, "--mask-size", meinst.MASK_SIZE, "--clamp", *meinst.SIGMOID_CLAMP]
    options += ["--class-specific"] * MASK_ENCODER_REGISTRY.get(meinst.ENCODER).class_specific
    return [*map(str, options), *["--no-sigmoid"] * (not meinst.SIGMOID), *["--no-whiten"] * (not meinst.WHITEN)]


def train_on_files(
    train_json: str | os.PathLike[str],
    val_json: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    config: str = "fine_tune",
    weights: str = "",
    overrides: Sequence[Any] = (),
    resume: bool = False,
) -> str:
    """What meinst fit and meinst train do with two COCO files, in this process; ``meinst_d2.train``.

    Args:
        train_json, val_json: what to learn from and what to evaluate on.
        images, output: the folder of their images, or one for each; the folder of the run.
        config: a YAML file, or a name below ``configs/``.
        weights: what to start from; by default those of the config. For weights of a backbone alone, mask components
            are fitted to ``output/components.npz``.
        overrides: KEY, VALUE, KEY, VALUE, ... of the config.
        resume: continue from the last checkpoint in ``output``.

    Returns:
        The file of the best weights, or of the last where no evaluation says which are best.

    Raises:
        ValueError, OSError: something is wrong with the files, the weights or the config; a sentence each.
    """
    args = parse_args(["--config-file", config if os.path.isfile(config) else get_config_file(config)])
    args.resume, started = resume, time.time()
    folders = [images] * 2 if isinstance(images, (str, os.PathLike)) else images
    for split, file, folder in zip(("TRAIN", "TEST"), (train_json, val_json), folders, strict=True):
        name = f"{output}_{split.lower()}"
        args.coco_dataset.append(f"{name}={file}:{folder}")
        args.opts += [f"DATASETS.{split}", (name,)]
    args.opts += ["OUTPUT_DIR", str(output), *(["MODEL.WEIGHTS", weights] if weights else [])]
    args.opts += [*([] if torch.cuda.is_available() else ["MODEL.DEVICE", "cpu"]), *overrides]
    cfg, components = load(args)[0], os.path.join(output, "components.npz")
    meinst, start = cfg.MODEL.MEINST, cfg.MODEL.WEIGHTS
    encoder = dict(MASK_ENCODER_REGISTRY).get(meinst.ENCODER)
    encodes = cfg.MODEL.MASK_ON and meinst.MASK_REPRESENTATION != "none" and encoder and encoder.needs_components
    bare = not start or start.endswith(".pkl") or "ImageNetPretrained" in start
    if encodes and bare and not os.path.isfile(meinst.COMPONENTS):
        if not (resume and os.path.isfile(components)):
            try:
                fit_command.main(["--coco-json", str(train_json), "--output", components, *fit_options(cfg)])
            except SystemExit as error:
                raise ValueError(str(error)) from error
        args.opts += ["MODEL.MEINST.COMPONENTS", components]
    train(args, check(args))
    best, last = (os.path.join(output, f"{name}.pth") for name in ("model_best", "model_final"))
    return best if os.path.isfile(best) and (resume or os.path.getmtime(best) >= started) else last


def main(argv: Sequence[str] | None = None) -> None:
    """Check what can be checked, then start the processes. A script that registers datasets of its own calls this."""
    args = parse_args(argv)
    with reporting("train"):
        opened = check(args)
    launch(train, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args, opened))
