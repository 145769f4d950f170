"""Detectron2's DefaultTrainer with our loader, step, optimizer, checkpointer and evaluator."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from meinst_d2.checkpoint.checkpointer import CheckpointInfo, MEInstCheckpointer
from meinst_d2.checkpoint.compatibility import CLASS_LAYER, MASK_LAYER
from meinst_d2.config import precision_of
from meinst_d2.data.datasets import loading
from meinst_d2.data.loader import TrainLoader, build_train_loader
from meinst_d2.engine.averaging import WeightAverage
from meinst_d2.engine.loop import TrainingLoop
from meinst_d2.engine.optimizer import build_optimizer
from meinst_d2.engine.pictures import Visualization
from meinst_d2.engine.preemption import Termination
from meinst_d2.engine.step import TrainStep
from meinst_d2.engine.validation import Validation
from meinst_d2.engine.validation_loss import build_validation_loader, validation_losses
from meinst_d2.evaluation import build_evaluator
from meinst_d2.files import remove_unfinished
from meinst_d2.modeling.retinanet import further_state


class Trainer(DefaultTrainer, TrainingLoop):
    """Trains from a config whose ``SEED`` has been settled. Used as DefaultTrainer is.

    Attributes:
        weight_average: of the weights, or None.
    """

    def __init__(self, cfg: CfgNode) -> None:
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = TrainStep(
            distribute(model),
            loader,
            optimizer,
            seed=cfg.SEED,
            scale_loss=precision_of(cfg) == "float16",
            accumulation=cfg.SOLVER.GRADIENT_ACCUMULATION,
            failures=cfg.OUTPUT_DIR,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        about = CheckpointInfo.from_config(cfg)
        self.checkpointer = MEInstCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self), meinst=about, **further_state(model)
        )
        self.weight_average: WeightAverage | None = None
        if cfg.SOLVER.EMA_DECAY:
            self.weight_average = WeightAverage(model, cfg.SOLVER.EMA_DECAY)
            self.checkpointer.add_checkpointable("ema", self.weight_average)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    @property
    def termination(self) -> Termination:
        """Of the loop, whose flag the steps exchange."""
        return self._trainer.termination

    @property
    def all_stop(self) -> bool:
        """Whether SIGTERM has come to any process."""
        return self._trainer.all_stop

    @property
    def last_batch(self) -> Sequence[Mapping[str, Any]]:
        """What the last iteration learned from."""
        return self._trainer.last_batch

    @property
    def evaluated_model(self) -> nn.Module:
        """What evaluations are about: the averaged model where there is one."""
        return self.model if self.weight_average is None else self.weight_average.averaged_model

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's, with our evaluation, the average of the weights and pictures."""
        built: list[HookBase] = [] if self.weight_average is None else [self.weight_average]
        for hook in super().build_hooks():
            if not isinstance(hook, hooks.EvalHook):
                built.append(hook)
                continue
            built.append(self._build_validation())
            if self.cfg.VIS_PERIOD > 0 and comm.is_main_process():
                built.append(Visualization(self.cfg.VIS_PERIOD, self.cfg.INPUT.FORMAT))
        return built

    def _build_validation(self) -> Validation:
        metric, datasets = self.cfg.TEST.BEST_METRIC, self.cfg.DATASETS.TEST
        if metric.startswith("segm") and not self.cfg.MODEL.MASK_ON:
            metric = metric.replace("segm", "bbox", 1)
        if len(datasets) > 1:
            metric = f"{datasets[0]}/{metric}"
        return Validation(
            self._evaluate,
            period=self.cfg.TEST.EVAL_PERIOD,
            metric=metric if datasets and self.cfg.TEST.BEST_METRIC else "",
            patience=self.cfg.TEST.PATIENCE,
            keep_best=self._keep_best,
        )

    def _evaluate(self) -> Mapping[str, Any]:
        model = self.evaluated_model
        self._last_eval_results = results = self.test(self.cfg, model)
        if self.cfg.TEST.VALIDATION_LOSS and self.cfg.DATASETS.TEST:
            loader = build_validation_loader(self.cfg, self.cfg.DATASETS.TEST[0])
            results = {**results, "validation": validation_losses(getattr(model, "module", model), loader)}
        return results

    def _keep_best(self, metric: float, iteration: int) -> None:
        model = self.evaluated_model
        self.checkpointer.save_weights("model_best", getattr(model, "module", model), iteration=iteration, best=metric)

    def resume_or_load(self, resume: bool = True) -> None:
        """As DefaultTrainer's; then the loader continues where the checkpoint stopped.

        Of two sets of mask components the one that ``MODEL.MEINST.COMPONENTS_CONFLICT`` names is kept. Where training
        starts from weights of other classes, the class layer starts anew.
        """
        if comm.is_main_process():
            remove_unfinished(self.cfg.OUTPUT_DIR, ".pth")
        conflict = self.cfg.MODEL.MEINST.COMPONENTS_CONFLICT
        if not (resume and self.checkpointer.has_checkpoint()):
            self.checkpointer.may_start_anew = (CLASS_LAYER, MASK_LAYER) if conflict == "file" else (CLASS_LAYER,)
        model = self.checkpointer.model
        generator = getattr(model, "proposal_generator", model)
        encoder = getattr(generator, "mask_encoder", None)
        from_file = None
        if encoder is not None and encoder.needs_components and encoder.is_fitted:
            from_file = {name: value.clone() for name, value in encoder.state_dict().items()}
        super().resume_or_load(resume)
        self.data_loader.seek(self.start_iter)
        if from_file is not None and self.start_iter == 0:
            _settle_components(generator, from_file, conflict)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        with loading(dataset_name):
            loader: Iterable[Any] = super().build_test_loader(cfg, dataset_name)
            return loader

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)


def distribute(model: nn.Module) -> nn.Module:
    """The model, wrapped for training where there are several processes, on GPUs or CPUs."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
    )


def _settle_components(generator: nn.Module, from_file: dict[str, torch.Tensor], conflict: str) -> None:
    loaded = generator.mask_encoder.state_dict()
    if all(torch.allclose(loaded[name], value, rtol=1e-5, atol=1e-6) for name, value in from_file.items()):
        return
    logger = logging.getLogger(__name__)
    if conflict == "file":
        generator.mask_encoder.load_state_dict(from_file)
        generator.head.reset_mask_predictor()
        logger.warning("Took the components of MODEL.MEINST.COMPONENTS; the mask predictor starts anew.")
    elif conflict == "weights":
        logger.info("Kept the components of MODEL.WEIGHTS instead of those of MODEL.MEINST.COMPONENTS.")
    else:
        raise ValueError(COMPONENTS_DIFFER)


COMPONENTS_DIFFER = (
    "the components in MODEL.WEIGHTS differ from those in MODEL.MEINST.COMPONENTS: set "
    "MODEL.MEINST.COMPONENTS_CONFLICT to 'weights' to go on with what the mask predictor has learned, or to 'file' to "
    "start the mask predictor anew"
)
