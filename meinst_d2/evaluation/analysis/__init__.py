"""Where a detector's AP is lost: detection, boxes, encoding or regression. From result files alone, no model runs."""

from meinst_d2.evaluation.analysis.analysis import Analysis, analyze
from meinst_d2.evaluation.analysis.inputs import Truth, read_results, read_truth

__all__ = ["Analysis", "Truth", "analyze", "read_results", "read_truth"]
