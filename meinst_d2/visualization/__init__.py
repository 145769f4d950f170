"""Seeing what a model finds: in images, in videos."""

from meinst_d2.prerequisites import require_detectron2

require_detectron2()

from meinst_d2.visualization.drawing import MaskVideoVisualizer, MaskVisualizer  # noqa: E402
from meinst_d2.visualization.inputs import Source, find_sources, plan_outputs, require_own_file  # noqa: E402
from meinst_d2.visualization.predictor import Predictor  # noqa: E402
from meinst_d2.visualization.results import ResultFile  # noqa: E402
from meinst_d2.visualization.run import Summary, show  # noqa: E402

__all__ = [
    "MaskVideoVisualizer",
    "MaskVisualizer",
    "Predictor",
    "ResultFile",
    "Source",
    "Summary",
    "find_sources",
    "plan_outputs",
    "require_own_file",
    "show",
]
