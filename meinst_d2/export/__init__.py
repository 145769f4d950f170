"""A trained detector as one file that runs without this package and without Detectron2."""

from meinst_d2.prerequisites import require_detectron2

require_detectron2()

from meinst_d2.export.check import CheckResult  # noqa: E402
from meinst_d2.export.graph import DetectionGraph  # noqa: E402
from meinst_d2.export.write import FORMATS, export_model  # noqa: E402

__all__ = ["FORMATS", "CheckResult", "DetectionGraph", "export_model"]
