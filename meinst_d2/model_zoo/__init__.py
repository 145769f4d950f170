"""Models by name, file or URL, in the manner of ``detectron2.model_zoo``."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.model_zoo.trained import TrainedModel, UnusableImage, get, get_info, load_trained  # noqa: E402
from meinst_d2.model_zoo.zoo import get_checkpoint_url, get_config, get_config_file  # noqa: E402

__all__ = ["TrainedModel", "UnusableImage", "get", "get_checkpoint_url", "get_config", "get_config_file", "get_info"]
__all__ += ["load_trained"]
