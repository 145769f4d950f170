"""Train or evaluate a model. The flags are those of Detectron2's tools/train_net.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

import meinst_d2.modeling  # noqa: F401  registers the model
from meinst_d2 import add_meinst_config
from meinst_d2.checkpoint.checkpointer import MEInstCheckpointer
from meinst_d2.checkpoint.resume import OpenedCheckpoint
from meinst_d2.commands import reporting
from meinst_d2.config_file import merge_config_file, merge_overrides, require_file
from meinst_d2.data.datasets import counting_classes, register_coco
from meinst_d2.engine import Trainer, check_before_start, settle_seed
from meinst_d2.engine.launch import default_setup, launch
from meinst_d2.engine.lazy import as_yaml, in_lazy_words, lazy_trainer

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
    """Defaults, then the file, then the overrides; classes that none of them counts are those of the dataset."""
    cfg = get_cfg()
    add_meinst_config(cfg)
    with counting_classes(cfg):
        if args.config_file:
            merge_config_file(cfg, args.config_file)
        merge_overrides(cfg, args.opts)
    return cfg


def load_lazy(args: argparse.Namespace) -> Any:
    """The LazyConfig (DictConfig) with its overrides, KEY=VALUE; None where the config is YAML."""
    if not args.config_file.endswith(".py"):
        return None
    require_file(args.config_file)
    return LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)


def train(args: argparse.Namespace, opened: OpenedCheckpoint | None = None) -> Any:
    """What every process does.

    Args:
        args: of the command.
        opened: the checkpoint to start from, where it has been read already.

    Returns:
        The results of the last evaluation.
    """
    for dataset in args.coco_dataset:
        register_coco(dataset)
    lazy = load_lazy(args)
    cfg, trainer_class = (load_config(args), Trainer) if lazy is None else (as_yaml(lazy), lazy_trainer(lazy))
    cfg.SEED = settle_seed(cfg.SEED, cfg.OUTPUT_DIR, args.resume)
    if lazy is not None:
        lazy.train.seed = cfg.SEED
    cfg.freeze()
    default_setup(cfg if lazy is None else lazy, args)
    if args.eval_only:
        model = trainer_class.build_model(cfg)
        checkpointer = MEInstCheckpointer(model, cfg.OUTPUT_DIR, opened=opened)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = trainer_class.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = trainer_class(cfg, opened=opened)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def main(argv: Sequence[str] | None = None) -> None:
    """Check what can be checked, then start the processes.

    Args:
        argv: the command line, by default this process's. A script that registers datasets of its own calls this.
    """
    args = parse_args(argv)
    processes = max(args.num_gpus, 1) * args.num_machines
    with reporting("train"):
        for dataset in args.coco_dataset:
            register_coco(dataset)
        lazy = load_lazy(args)
        cfg = load_config(args) if lazy is None else as_yaml(lazy)
        try:
            opened = check_before_start(cfg, eval_only=args.eval_only, resume=args.resume, num_processes=processes)
        except ValueError as error:
            raise error if lazy is None else ValueError(in_lazy_words(str(error))) from error
    handed_on = (opened,) if processes == 1 else ()
    launch(train, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, (args, *handed_on))
