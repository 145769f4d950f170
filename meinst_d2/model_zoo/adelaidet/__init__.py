"""Taking over configs and weights of the published implementation (AdelaiDet)."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.model_zoo.adelaidet.run import import_checkpoint  # noqa: E402

__all__ = ["import_checkpoint"]
