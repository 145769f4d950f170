"""The loop over iterations, which can end early."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.engine import TrainerBase
from detectron2.utils.events import EventStorage


class TrainingLoop(TrainerBase):
    """Detectron2's loop, but that a hook may call :meth:`finish`.

    Attributes:
        checkpointer: writes the last checkpoint where training ends early.
    """

    checkpointer: Any = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``."""
        logger = logging.getLogger(__name__)
        logger.info(f"Starting training from iteration {start_iter}")
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < self.max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def finish(self, reason: str) -> None:
        """Make this iteration the last one. All processes call it in the same iteration."""
        logging.getLogger(__name__).info(f"Training ends after iteration {self.iter}: {reason}.")
        self.max_iter = self.iter + 1
        self.checkpointer.save("model_final", iteration=self.iter)
