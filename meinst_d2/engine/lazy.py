"""Training and evaluation from a LazyConfig, by the trainer of YAML configs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg, instantiate
from detectron2.engine import HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.solver import LRMultiplier
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from meinst_d2.config import add_meinst_config
from meinst_d2.config_file import ConfigError, merge_overrides
from meinst_d2.data.datasets import class_names as class_names_of
from meinst_d2.data.datasets import counting_classes, loading
from meinst_d2.data.loader import TrainLoader
from meinst_d2.encoding import MASK_ENCODER_REGISTRY
from meinst_d2.engine.trainer import Trainer

ENCODER = "model.proposal_generator.mask_encoder.encoder"
LAZY_KEYS = {
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "VIS_PERIOD": "train.vis_period",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.DEVICE": "train.device",
    "MODEL.MEINST.COMPONENTS_CONFLICT": "train.components_conflict",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpoint_period",
    "SOLVER.GRADIENT_ACCUMULATION": "train.gradient_accumulation",
    "SOLVER.EMA_DECAY": "train.ema_decay",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "TEST.BEST_METRIC": "train.best_metric",
    "TEST.PATIENCE": "train.patience",
    "TEST.VALIDATION_LOSS": "train.validation_loss",
    "MODEL.MEINST.PRECISION": "model.precision",
    "MODEL.MEINST.NUM_CLASSES": "model.proposal_generator.head.num_classes",
    "MODEL.MEINST.MASK_REPRESENTATION": "model.proposal_generator.criterion.mask_loss.representation",
    "MODEL.MEINST.COMPONENTS": "model.proposal_generator.mask_encoder.path",
    "MODEL.MEINST.DIM_MASK": f"{ENCODER}.dim",
    "MODEL.MEINST.MASK_SIZE": f"{ENCODER}.mask_size",
    "MODEL.MEINST.SIGMOID": f"{ENCODER}.sigmoid",
    "MODEL.MEINST.WHITEN": f"{ENCODER}.whiten",
    "INPUT.FORMAT": "dataloader.train.mapper.image_format",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.batch_size",
    "DATALOADER.NUM_WORKERS": "dataloader.test.num_workers",
    "DATASETS.TRAIN": "dataloader.train.records.names",
    "DATASETS.TEST": "dataloader.evaluator.dataset_name",
}
"""What a LazyConfig says under other names, by the key of a YAML config."""


def as_yaml(lazy: DictConfig) -> CfgNode:
    """What a LazyConfig says as a YAML config, for checks, hooks and checkpoints; what it does not say is the default.

    An encoder may stand alone or in ``with_components``.
    """
    cfg, found = get_cfg(), dict[str, Any]()
    add_meinst_config(cfg)
    for key, name in LAZY_KEYS.items():
        value = OmegaConf.select(lazy, name)
        found[key] = OmegaConf.select(lazy, name.replace(".encoder.", ".")) if value is None else value
    for key in ("DATASETS.TRAIN", "DATASETS.TEST"):
        found[key] = (found[key],) if isinstance(found[key], str) else tuple(found[key] or ())
    encoder = OmegaConf.select(lazy, ENCODER) or OmegaConf.select(lazy, ENCODER.removesuffix(".encoder"))
    found["MODEL.MASK_ON"] = encoder is not None
    if encoder is not None and found["MODEL.MEINST.MASK_REPRESENTATION"] != "none":
        found["MODEL.MEINST.ENCODER"] = _registered_name(encoder, MASK_ENCODER_REGISTRY)
    found["MODEL.META_ARCHITECTURE"] = _registered_name(lazy.model, META_ARCH_REGISTRY)
    with counting_classes(cfg):
        for key, value in found.items():
            if value is not None:
                try:
                    merge_overrides(cfg, [key, value])
                except ConfigError as error:
                    raise ConfigError(in_lazy_words(str(error))) from error
    return cfg


def _registered_name(part: DictConfig, registry: Any) -> str | None:
    """The first registered name of the class that a part is made of, or of those that it is derived from."""
    made_of = locate(part._target_) if isinstance(part._target_, str) else part._target_
    return next((cls.__name__ for cls in getattr(made_of, "__mro__", ()) if cls.__name__ in registry), None)


def in_lazy_words(sentences: str) -> str:
    """Sentences about the config of :func:`as_yaml` with the keys of the LazyConfig."""
    for key in sorted(LAZY_KEYS, key=len, reverse=True):
        sentences = sentences.replace(key, LAZY_KEYS[key])
    return sentences


def lazy_trainer(lazy: DictConfig) -> type[Trainer]:
    """The trainer whose parts are those of a LazyConfig; its config is that of :func:`as_yaml`."""

    class LazyTrainer(Trainer):
        @classmethod
        def build_model(cls, cfg: CfgNode) -> nn.Module:
            model = instantiate(lazy.model).to(cfg.MODEL.DEVICE)
            logging.getLogger(__name__).info("Model:\n%s", model)
            return model

        @classmethod
        def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
            lazy.optimizer.params.model = model
            return instantiate(lazy.optimizer)

        @classmethod
        def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
            return LRMultiplier(optimizer, instantiate(lazy.lr_multiplier), cfg.SOLVER.MAX_ITER)

        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
            with loading(*cfg.DATASETS.TRAIN):
                return instantiate(lazy.dataloader.train)

        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
            return instantiate(lazy.dataloader.test)

        @classmethod
        def build_validation_loader(
            cls, cfg: CfgNode, dataset_name: str, augmentations: Sequence[Any] = ()
        ) -> Iterable[Any]:
            augmentations = instantiate(lazy.dataloader.test.mapper.augmentations)
            return super().build_validation_loader(cfg, dataset_name, augmentations)

        @classmethod
        def build_evaluator(
            cls, cfg: CfgNode, dataset_name: str, class_names: Sequence[str] | None = None
        ) -> DatasetEvaluator:
            evaluator, names = lazy.dataloader.evaluator, class_names
            if names is None and cfg.DATASETS.TRAIN:
                names = class_names_of(cfg.DATASETS.TRAIN[0])
            if names and list(names) != class_names_of(dataset_name):  # which may lack some
                evaluator.class_names = list(names)
            return instantiate(evaluator)

        def build_hooks(self) -> list[HookBase | None]:
            built = super().build_hooks()
            for hook in built:
                if isinstance(hook, hooks.PeriodicWriter):
                    hook._period = lazy.train.get("log_period", 20)
            return built

    return LazyTrainer
