"""The exponential moving average of the weights, which often predicts better than the weights themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage(HookBase):
    """Updates the average after every iteration: average = decay * average + (1 - decay) * weights.

    The first iteration sets it to the weights. Buffers, the mask components among them, are copied. Everything is
    torch's ``AveragedModel``; this class makes it a hook and a part of checkpoints.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: not wrapped for distributed training.
            decay: below 1; the average looks back about 1 / (1 - decay) iterations.
        """
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA_DECAY = {decay} must be below 1, such as 0.9998, or 0 for no average")
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def after_step(self) -> None:
        self.average.update_parameters(self.model)

    @property
    def averaged_model(self) -> nn.Module:
        """The model with the averaged weights; the model itself before the first update."""
        averaged: nn.Module = self.average.module if self.average.n_averaged else self.model
        return averaged

    def state_dict(self) -> dict[str, Any]:
        """``model``, the averaged weights, and ``updates``; nothing before the first update."""
        updates = int(self.average.n_averaged)
        return {"model": self.average.module.state_dict(), "updates": updates} if updates else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            self.average.module.load_state_dict(state["model"])
            self.average.n_averaged.fill_(state["updates"])
