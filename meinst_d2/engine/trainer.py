"""Detectron2's DefaultTrainer with our loader, loop, step, hooks, checkpointer and evaluator."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from meinst_d2.checkpoint.checkpointer import CheckpointInfo, MEInstCheckpointer
from meinst_d2.checkpoint.compatibility import CLASS_LAYER, MASK_LAYER
from meinst_d2.checkpoint.resume import OpenedCheckpoint
from meinst_d2.config import check_choices, precision_of
from meinst_d2.data.datasets import loading
from meinst_d2.data.loader import TrainLoader, build_train_loader
from meinst_d2.data.mapper import MEInstDatasetMapper
from meinst_d2.engine.hooks import Validation, WeightAverage, draw_sample, validation_losses
from meinst_d2.engine.launch import LostWorkerError, Preempted, settle_seed
from meinst_d2.engine.step import TrainStep
from meinst_d2.evaluation import build_evaluator
from meinst_d2.files import remove_unfinished
from meinst_d2.modeling.retinanet import further_state
from meinst_d2.modeling.test_time_augmentation import DetectorWithTTA
from meinst_d2.modeling.tiles import in_tiles
from meinst_d2.modeling.timm_backbone import lr_factors

LOST_WORKER = "a process that loads images ended, perhaps for want of memory: lower DATALOADER.NUM_WORKERS and --resume"
COMPONENTS_DIFFER = (
    "the components in MODEL.WEIGHTS differ from those in MODEL.MEINST.COMPONENTS: set "
    "MODEL.MEINST.COMPONENTS_CONFLICT to 'weights' to keep what the mask predictor has learned, or to 'file' to "
    "re-initialize the mask predictor"
)


class Trainer(DefaultTrainer):
    """Used like Detectron2's: parts come from the ``build_`` methods, which can be overridden, and are assembled here.

    The loop differs in that a hook may call :meth:`finish`, and that SIGTERM (``termination``) saves a checkpoint and
    ends it. A negative ``SEED`` is drawn once, and found again when the run is resumed.
    """

    def __init__(self, cfg: CfgNode, *, opened: OpenedCheckpoint | None = None) -> None:
        """From a config, which is not modified, and what ``check_before_start`` has opened already."""
        TrainerBase.__init__(self)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SEED = settle_seed(cfg.SEED, cfg.OUTPUT_DIR, resume=True)
        cfg.freeze()
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = TrainStep(
            distribute(model),
            self.build_train_loader(cfg),
            optimizer,
            seed=cfg.SEED,
            scale_loss=precision_of(cfg) == "float16",
            accumulation=cfg.SOLVER.GRADIENT_ACCUMULATION,
            failures=cfg.OUTPUT_DIR,
        )
        self.termination = self._trainer.termination
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        states = {"trainer": weakref.proxy(self), "meinst": CheckpointInfo.from_config(cfg), **further_state(model)}
        self.checkpointer = MEInstCheckpointer(model, cfg.OUTPUT_DIR, opened=opened, **states)
        self.weight_average = WeightAverage(model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
        if self.weight_average is not None:
            self.checkpointer.add_checkpointable("ema", self.weight_average)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self._last_eval_results: Mapping[str, Any] = {}
        self.register_hooks(self.build_hooks())

    @property
    def evaluated_model(self) -> nn.Module:
        """What evaluations are about: the averaged model where there is one."""
        return self.checkpointer.model if self.weight_average is None else self.weight_average.averaged_model

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's, with our evaluation, the average of the weights and pictures."""
        cfg, built = self.cfg, [self.weight_average]
        metric = cfg.TEST.BEST_METRIC if cfg.DATASETS.TEST else ""
        if metric.startswith("segm") and not cfg.MODEL.MASK_ON:
            metric = metric.replace("segm", "bbox", 1)
        if metric and len(cfg.DATASETS.TEST) > 1:
            metric = f"{cfg.DATASETS.TEST[0]}/{metric}"

        def keep_best(best: float, iteration: int) -> None:
            self.checkpointer.save_weights("model_best", self.evaluated_model, iteration=iteration, best=best)

        rules = {"period": cfg.TEST.EVAL_PERIOD, "patience": cfg.TEST.PATIENCE}
        validation = Validation(self._evaluate, **rules, metric=metric, keep_best=keep_best)
        ours = (validation, hooks.CallbackHook(after_step=type(self)._draw))
        for hook in super().build_hooks():
            built += ours if isinstance(hook, hooks.EvalHook) else (hook,)
        return built

    def _draw(self) -> None:
        period = self.cfg.VIS_PERIOD
        if period > 0 and (self.iter + 1) % period == 0 and comm.is_main_process():
            picture = draw_sample(self.checkpointer.model, self._trainer.last_batch[0], self.cfg.INPUT.FORMAT)
            self.storage.put_image("ground truth, reconstruction, prediction", picture)

    def _evaluate(self) -> Mapping[str, Any]:
        model, cfg = self.evaluated_model, self.cfg
        results = self._last_eval_results = self.test(cfg, model)
        if cfg.TEST.VALIDATION_LOSS and cfg.DATASETS.TEST:
            loader = self.build_validation_loader(cfg, cfg.DATASETS.TEST[0])
            results = {**results, "validation": validation_losses(model, loader)}
        return results

    def resume_or_load(self, resume: bool = True) -> None:
        """Like DefaultTrainer's; then the loader continues where the checkpoint stopped.

        Of two sets of mask components the one that ``MODEL.MEINST.COMPONENTS_CONFLICT`` names is kept. Where training
        starts from weights of other classes, the class layer is re-initialized.
        """
        if comm.is_main_process():
            remove_unfinished(self.cfg.OUTPUT_DIR, ".pth")
        conflict = self.cfg.MODEL.MEINST.COMPONENTS_CONFLICT
        model, of_file = self.checkpointer.model, None
        generator = getattr(model, "proposal_generator", model)
        encoder = getattr(generator, "mask_encoder", None)
        if not (resume and self.checkpointer.has_checkpoint()):
            self.checkpointer.may_reinitialize = (CLASS_LAYER, MASK_LAYER) if conflict == "file" else (CLASS_LAYER,)
            if encoder is not None and encoder.needs_components and encoder.is_fitted:
                of_file = {name: value.clone() for name, value in encoder.state_dict().items()}
        super().resume_or_load(resume)
        self.data_loader.seek(self.start_iter)
        loaded, logger = {} if of_file is None else encoder.state_dict(), logging.getLogger(__name__)
        if all(torch.allclose(value, of_file[name], rtol=1e-5, atol=1e-6) for name, value in loaded.items()):
            return
        if conflict == "stop":
            raise ValueError(COMPONENTS_DIFFER)
        if conflict == "file":
            encoder.load_state_dict(of_file)
            generator.head.reset_mask_predictor()
            logger.warning("Took the components of MODEL.MEINST.COMPONENTS; the mask predictor is re-initialized.")
        else:
            logger.info("Kept the components of MODEL.WEIGHTS instead of those of MODEL.MEINST.COMPONENTS.")

    def train(self) -> Mapping[str, Any]:
        """Run the iterations up to ``max_iter``; returns the results of the last evaluation.

        Raises:
            Preempted: SIGTERM came; what was learned is saved.
            LostWorkerError: a process of the loader was killed.
        """
        logger, self.iter = logging.getLogger(__name__), self.start_iter
        logger.info(f"Starting training from iteration {self.start_iter}")
        with EventStorage(self.start_iter) as self.storage, self.termination.handled():
            learned = self.start_iter - 1
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    learned = self.iter
                    self.after_step()
                    if self._trainer.all_stop and self.iter + 1 < self.max_iter:
                        raise Preempted
                    self.iter += 1
            except (Exception, Preempted) as error:
                lost_worker = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
                if not isinstance(error, Preempted) and not (lost_worker and self.termination.requested):
                    logger.exception("Exception during training:")
                    if lost_worker:
                        raise LostWorkerError(f"{LOST_WORKER} ({error})") from error
                    raise
                if learned == self.iter:
                    self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
                    comm.synchronize()  # or the process that writes would be ended by the others' end
                logger.info(f"SIGTERM: training ends after iteration {learned}; resume with --resume.")
                raise Preempted from error  # a loader may have got the signal, too
            finally:
                self.after_train()
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def finish(self, iteration: int, reason: str) -> None:
        """Make an iteration, the one just learned, the last one. All processes call it in the same iteration."""
        logging.getLogger(__name__).info(f"Training ends after iteration {iteration}: {reason}.")
        self.max_iter = iteration + 1
        self.checkpointer.save("model_final", iteration=iteration)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW with the same parameter groups and gradient clipping."""
        check_choices(cfg)
        solver, factors = cfg.SOLVER, lr_factors(model, cfg.MODEL.TIMM.LR_DECAY)
        if solver.OPTIMIZER == "SGD" and not factors:
            return build_sgd(cfg, model)
        keys = ("BASE_LR", "WEIGHT_DECAY_NORM", "BIAS_LR_FACTOR", "WEIGHT_DECAY_BIAS")
        options = {key.lower(): solver[key] for key in keys}
        params = get_default_optimizer_params(model, **options, lr_factor_func=lambda name: factors.get(name, 1.0))
        if solver.OPTIMIZER == "SGD":
            sgd = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
            momentum = {"momentum": solver.MOMENTUM, "nesterov": solver.NESTEROV}
            return sgd(params, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **momentum)
        adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        fused = precision_of(cfg) != "float16"  # whose scaled gradients would be clipped before they are unscaled
        return adamw(params, lr=solver.BASE_LR, betas=solver.BETAS, weight_decay=solver.WEIGHT_DECAY, fused=fused)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        with loading(dataset_name):
            return super().build_test_loader(cfg, dataset_name)

    @classmethod
    def build_validation_loader(
        cls, cfg: CfgNode, dataset_name: str, augmentations: Sequence[T.Augmentation] = ()
    ) -> Iterable[Any]:
        """Images with their instances as in training, shared by the processes, by default at test size.

        Classes are numbered as in the first dataset of ``DATASETS.TRAIN``, of which the dataset may lack some.
        """
        mapper = MEInstDatasetMapper(
            augmentations=augmentations or [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)],
            image_format=cfg.INPUT.FORMAT,
            mask_size=cfg.MODEL.MEINST.MASK_SIZE if cfg.MODEL.MASK_ON else None,
        )
        records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
        sets = (*cfg.DATASETS.TRAIN[:1], dataset_name)
        wanted, names = (MetadataCatalog.get(name).get("thing_classes") for name in (sets[0], sets[-1]))
        if wanted and names and list(names) != list(wanted):
            records = copy.deepcopy(records)  # the dataset may keep its own
            for annotation in (annotation for record in records for annotation in record.get("annotations", ())):
                annotation["category_id"] = list(wanted).index(names[annotation["category_id"]])
        return build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, class_names: Sequence[str] | None = None
    ) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, class_names)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """DefaultTrainer's, in tiles where ``TEST.TILES`` asks for them."""
        return super().test(cfg, in_tiles(cfg, model), evaluators)

    @classmethod
    def test_with_tta(cls, cfg: CfgNode, model: nn.Module, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """Results with test-time augmentation, as ``bbox_TTA`` and the like; files in ``OUTPUT_DIR/inference_TTA``."""
        logging.getLogger(__name__).info("Running inference with test-time augmentation ...")
        evaluators = [build_evaluator(cfg, name, class_names, "inference_TTA") for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, DetectorWithTTA(cfg, model).eval(), evaluators)
        return {f"{name}_TTA": metrics for name, metrics in results.items()}


def distribute(model: nn.Module) -> nn.Module:
    """The model, wrapped for training where there are several processes, on GPUs or CPUs."""
    device = next(model.parameters()).device
    devices = [device.index] if device.type == "cuda" else None
    return create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
