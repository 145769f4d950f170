"""Evaluation on the way: again where it was cut short, keeping the best weights, and ending training that no longer
improves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm


class Validation(HookBase):
    """Evaluates every ``period`` iterations and at the end.

    Its state is part of checkpoints. A checkpoint is written before the evaluation of its iteration, so a run that goes
    on from there evaluates first.
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
        self.since_best = 0
        self.last_iteration = -1
        self.logger = logging.getLogger(__name__)

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
        finished = self.trainer.iter >= self.trainer.max_iter
        if finished and self.last_iteration != self.trainer.max_iter - 1:
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
            self._judge(comm.all_gather(results.get(self.metric))[0], iteration)
        comm.synchronize()

    def _judge(self, value: float | None, iteration: int) -> None:
        if value is None or not math.isfinite(value):
            self.logger.warning(f"The evaluation gave no {self.metric}, so it does not say which weights are best.")
            return
        if self.best is None or value > self.best:
            self.best, self.since_best = value, 0
            if self.keep_best is not None:
                self.keep_best(value, iteration)
            return
        self.since_best += 1
        self._end_if_patience_is_over(iteration)

    def _end_if_patience_is_over(self, iteration: int) -> None:
        if 0 < self.patience <= self.since_best and iteration + 1 < self.trainer.max_iter:
            self.trainer.finish(
                iteration,
                f"{self.metric} has not risen above {self.best:.2f} in {self.since_best} evaluations "
                f"(TEST.PATIENCE {self.patience})",
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best, "last_iteration": self.last_iteration}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.since_best = state["best"], state["since_best"]
        self.last_iteration = state["last_iteration"]
