"""The loop over iterations, which can end early."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from meinst_d2.engine.preemption import Preempted, Termination

LOST_WORKER = "a process that loads images ended, perhaps for want of memory: lower DATALOADER.NUM_WORKERS and --resume"


class LostWorkerError(RuntimeError):
    """Training cannot go on without a process of the loader."""


class TrainingLoop(TrainerBase):
    """Detectron2's loop, but that a hook may call :meth:`finish`, and that SIGTERM saves a checkpoint and ends it.

    Attributes:
        checkpointer: writes the last checkpoint where training ends early.
        termination: whether SIGTERM has come to this process.
        all_stop: whether it had come to any process when they last exchanged their losses.
    """

    checkpointer: Any = None
    termination: Termination
    all_stop = False

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``.

        Raises:
            Preempted: SIGTERM came; what was learned is saved.
            LostWorkerError: a process of the loader was killed.
        """
        logger = logging.getLogger(__name__)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage, self.termination.handled():
            learned = start_iter - 1
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    learned = self.iter
                    self.after_step()
                    if self.all_stop and self.iter + 1 < self.max_iter:
                        raise Preempted
                    self.iter += 1
            except Exception as error:
                lost_worker = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
                if lost_worker and self.termination.requested:  # it got the signal too
                    self._end_early(learned)
                    raise Preempted from error
                logger.exception("Exception during training:")
                if lost_worker:
                    raise LostWorkerError(f"{LOST_WORKER} ({error})") from error
                raise
            except Preempted:
                self._end_early(learned)
                raise
            finally:
                self.after_train()

    def _end_early(self, learned: int) -> None:
        if learned == self.iter:
            self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            comm.synchronize()  # or the process that writes would be ended by the others' end
        logging.getLogger(__name__).info(f"SIGTERM: training ends after iteration {learned}; go on with --resume.")

    def finish(self, iteration: int, reason: str) -> None:
        """Make an iteration, the one just learned, the last one. All processes call it in the same iteration."""
        logging.getLogger(__name__).info(f"Training ends after iteration {iteration}: {reason}.")
        self.max_iter = iteration + 1
        self.checkpointer.save("model_final", iteration=iteration)
