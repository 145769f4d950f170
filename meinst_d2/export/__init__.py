"""A trained detector as one file that runs without this package and without Detectron2."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.export.check import CheckError, CheckResult, check_batches  # noqa: E402
from meinst_d2.export.graph import DetectionGraph  # noqa: E402
from meinst_d2.export.write import FORMATS, ExportSource, export_model, make_source, require_exporter  # noqa: E402

__all__ = [
    "FORMATS",
    "CheckError",
    "CheckResult",
    "DetectionGraph",
    "ExportSource",
    "check_batches",
    "export_model",
    "make_source",
    "require_exporter",
]
