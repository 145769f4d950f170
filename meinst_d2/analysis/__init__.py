"""Where a detector's AP is lost: detection, boxes, encoding or regression. From result files alone, no model runs."""

from meinst_d2.analysis.analysis import Analysis, analyze
from meinst_d2.analysis.inputs import Truth, read_detections, read_truth

__all__ = ["Analysis", "Truth", "analyze", "read_detections", "read_truth"]
