"""Models by name, file or URL, in the manner of ``detectron2.model_zoo``."""

from meinst_d2 import require_detectron2

require_detectron2()

from meinst_d2.model_zoo.trained import TrainedModel, load_trained  # noqa: E402
from meinst_d2.model_zoo.zoo import (  # noqa: E402
    get,
    get_checkpoint_url,
    get_config,
    get_config_file,
    get_info,
)

__all__ = [
    "TrainedModel",
    "get",
    "get_checkpoint_url",
    "get_config",
    "get_config_file",
    "get_info",
    "load_trained",
]
