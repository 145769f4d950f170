"""A trained detector as one file that runs without this package and without Detectron2."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.export.graph import DetectionGraph  # noqa: E402
from meinst_d2.export.write import CheckError, ExportSource, check_batches, export_model, make_source  # noqa: E402

__all__ = ["CheckError", "DetectionGraph", "ExportSource", "check_batches", "export_model", "make_source"]
