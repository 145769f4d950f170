"""What happens between iterations: averaging the weights, evaluating, keeping the best weights, drawing pictures."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from meinst_d2.masks import paste_masks
from meinst_d2.modeling.targets import mask_templates
from meinst_d2.visualization.drawing import MaskVisualizer, masks_of


class WeightAverage(HookBase):
    """The exponential moving average of the weights, after every iteration decay * average + (1 - decay) * weights.

    It is torch's ``AveragedModel``, made a hook and a part of checkpoints, and looks back 1 / (1 - decay) iterations.
    The first iteration sets it to the weights; buffers, mask components among them, are copied. After n iterations the
    decay is (1 + n) / (10 + n) at most, so that the average of a short run has forgotten where the run started.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA_DECAY = {decay} must be below 1, such as 0.9998, or 0 for no average")
        self.model = model

        def follow(averages: Any, weights: Any, updates: Tensor | int) -> None:
            n = int(self.average.n_averaged)  # updates, on the CPU: nothing waits for the GPU
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, weights, updates)

        self.average = AveragedModel(model, multi_avg_fn=follow)

    def after_step(self) -> None:
        self.average.update_parameters(self.model)

    @property
    def averaged_model(self) -> nn.Module:
        """The model with the averaged weights; the model itself before the first update."""
        return self.average.module if self.average.n_averaged else self.model

    def state_dict(self) -> dict[str, Any]:
        """``model``, the averaged weights, and ``updates``; nothing before the first update."""
        updates = int(self.average.n_averaged)
        return {"model": self.average.module.state_dict(), "updates": updates} if updates else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.average.module.load_state_dict(state["model"])
            self.average.n_averaged.fill_(state["updates"])


class Validation(HookBase):
    """Evaluates during and after training, keeps the best weights, and ends training that no longer improves.

    Its state is part of checkpoints, each written before the evaluation of its iteration: resuming evaluates first.
    """

    def __init__(
        self,
        evaluate: Callable[[], Mapping[str, Any]],
        *,
        period: int,
        metric: str = "segm/AP",
        patience: int = 0,
        keep_best: Callable[[float, int], None] | None = None,
    ) -> None:
        """
        Args:
            evaluate: gives metrics, nested by name; called by all processes, the first one's results count.
            period: iterations; 0 evaluates at the end only.
            metric: what is best where it is highest; "" keeps nothing.
            patience: evaluations without a better metric before training ends; 0 never ends it.
            keep_best: called by all processes with a metric that is the best so far, and the iteration.
        """
        self.evaluate, self.period = evaluate, period
        self.metric, self.patience, self.keep_best = metric, patience, keep_best
        self.best: float | None = None
        self.since_best, self.last_iteration, self.logger = 0, -1, logging.getLogger(__name__)

    def before_train(self) -> None:
        done = self.trainer.start_iter
        if self._is_due(done) and self.last_iteration != done - 1:
            self.logger.info(f"Evaluating iteration {done - 1}, which the last run did not get to.")
            self.trainer.storage.iter = done - 1
            self._validate(done - 1)
        elif done > 0:
            self._end_if_patience_is_over(done - 1)  # it was before the last run ended

    def after_step(self) -> None:
        if self._is_due(self.trainer.iter + 1):
            self._validate(self.trainer.iter)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter != self.last_iteration + 1:
            self._validate(self.trainer.max_iter - 1)

    def _is_due(self, done: int) -> bool:
        """Whether it is time after this many iterations; the last evaluation is that of the end."""
        return self.period > 0 and done > 0 and done % self.period == 0 and done < self.trainer.max_iter

    def _validate(self, iteration: int) -> None:
        with self.trainer.termination.raising():  # the next run evaluates again
            results = flatten_results_dict(self.evaluate() or {})
        self.trainer.storage.put_scalars(**results, smoothing_hint=False)
        self.last_iteration = iteration
        if self.metric:
            value = comm.all_gather(results.get(self.metric))[0]
            if value is None or not math.isfinite(value):
                self.logger.warning(f"The evaluation gave no {self.metric}, so it does not say which weights are best.")
            elif self.best is None or value > self.best:
                self.best, self.since_best = value, 0
                if self.keep_best is not None:
                    self.keep_best(value, iteration)
            else:
                self.since_best += 1
                self._end_if_patience_is_over(iteration)
        comm.synchronize()

    def _end_if_patience_is_over(self, iteration: int) -> None:
        if 0 < self.patience <= self.since_best and iteration + 1 < self.trainer.max_iter:
            waited = f"{self.since_best} evaluations (TEST.PATIENCE {self.patience})"
            self.trainer.finish(iteration, f"{self.metric} has not risen above {self.best:.2f} in {waited}")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best, "last_iteration": self.last_iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("best", "since_best", "last_iteration"):
            setattr(self, name, state[name])


@torch.no_grad()
def validation_losses(model: nn.Module, loader: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """The losses of a dataset as if it were one batch, and their sum as ``total_loss``.

    Nothing is learned and nothing is random: masks are encoded with the mean of their clamp.

    Args:
        model: an :class:`~meinst_d2.modeling.meta_arch.MEInstDetector`.
        loader: lists of inputs with ``instances``; this process's share of the dataset.
    """
    generator, trains = model.proposal_generator, model.training
    totals, counts = Counter[str](), torch.zeros(2)
    model.eval()
    model.training = generator.training = True  # these two give losses, their layers behave as in evaluation
    try:
        with generator.criterion.normalized_by(torch.ones(2, device=model.device)):
            for batch in loader:
                sizes = [tuple(x["image"].shape[-2:]) for x in batch]
                counts += generator.count_positives(sizes, [x["instances"] for x in batch])
                for name, loss in model(batch).items():
                    totals[name] += loss.item()
    finally:
        model.train(trains)
    gathered = comm.all_gather((totals, counts))
    positives, centerness = torch.stack([counts for _, counts in gathered]).sum(0).tolist()
    losses = Counter[str]()
    for mine, _ in gathered:
        for name, total in mine.items():
            per_positive = name in (
                "loss_cls",
                "loss_centerness",
                "loss_refine",
                "loss_refine_cls",
            )  # the others are divided by the sum of centerness
            losses[name] += total / (max(positives, 1) if per_positive else max(centerness, 1e-6))
    return {**losses, "total_loss": losses.total()}


@torch.no_grad()
def draw_sample(model: nn.Module, sample: Mapping[str, Any], image_format: str) -> np.ndarray:
    """The ground truth of a training sample, what the encoder makes of its masks, and the prediction, side by side.

    Args:
        model: a detector with masks or without.
        sample: of the training loader: ``image``, and ``instances`` in its pixels.
        image_format: as in ``INPUT.FORMAT``.

    Returns:
        (3, H, 3 * W) uint8 RGB.
    """
    image = convert_image_to_rgb(sample["image"].permute(1, 2, 0), image_format)
    truth, trains = sample["instances"], model.training
    encoder = getattr(getattr(model, "proposal_generator", model), "mask_encoder", None)
    model.eval()  # with the mean of the encoder's random clamp
    try:
        found = model([{"image": sample["image"]}])[0]["instances"].to("cpu")
        templates: list[Tensor] = []
        if encoder is not None and len(truth):
            device = next(model.parameters()).device
            masks, classes = mask_templates([truth], encoder.mask_size), truth.gt_classes.to(device)
            templates = [masks.float(), encoder.decode(encoder.encode(masks.to(device), classes), classes).cpu()]
    finally:
        model.train(trains)
    boxes, size = truth.gt_boxes.tensor, truth.image_size
    given: list[Any] = [paste_masks(masks, boxes, *size).numpy() for masks in templates] or [None, None]
    panels = [{"boxes": boxes, "masks": masks} for masks in given]
    found = found[found.scores.argsort(descending=True)[:20]]
    masks = masks_of(found)
    if found.has("pred_mask_templates"):
        masks = paste_masks(found.pred_mask_templates, found.pred_mask_boxes.tensor, *found.image_size).numpy()
    labels = [f"{score:.0%}" for score in found.scores.tolist()]
    panels.append({"boxes": found.pred_boxes.tensor, "masks": masks, "labels": labels})
    pictures = [MaskVisualizer(image).overlay_instances(**panel).get_image() for panel in panels]
    return np.concatenate(pictures, axis=1).transpose(2, 0, 1)
