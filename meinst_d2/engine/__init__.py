"""Training: Detectron2's trainer with our loader, step and checks."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.engine.launch import settle_seed  # noqa: E402
from meinst_d2.engine.preflight import PreflightError, check_before_start  # noqa: E402
from meinst_d2.engine.trainer import Trainer  # noqa: E402

__all__ = ["PreflightError", "Trainer", "check_before_start", "settle_seed"]
