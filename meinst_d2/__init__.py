"""MEInst (mask encoding based instance segmentation) as a Detectron2 extension.

Importing this package imports neither torch nor Detectron2; ``import meinst_d2.modeling`` registers
the model, and :func:`add_meinst_config` adds its keys to a Detectron2 config.
"""

import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "add_meinst_config", "load", "train"]

if TYPE_CHECKING:
    from meinst_d2.commands.train import train_on_files as train
    from meinst_d2.config import add_meinst_config
    from meinst_d2.model_zoo.trained import load


DETECTRON2_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
DETECTRON2_INSTALL = (
    f"pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git@{DETECTRON2_COMMIT}'"
)


def has_detectron2() -> bool:
    """Whether Detectron2 can be imported."""
    return importlib.util.find_spec("detectron2") is not None


def require_detectron2() -> None:
    """Raise an ImportError that holds the install command when Detectron2 is missing."""
    if not has_detectron2():
        fix = f"with torch, torchvision and 'setuptools<81' in the environment, run {DETECTRON2_INSTALL}"
        raise ImportError(f"this part of meinst_d2 needs Detectron2, which is not installed: {fix}")


def __getattr__(name: str) -> Any:
    if name == "add_meinst_config":
        from meinst_d2.config import add_meinst_config

        return add_meinst_config
    if name == "load":
        from meinst_d2.model_zoo.trained import load

        return load
    if name == "train":
        from meinst_d2.commands.train import train_on_files

        return train_on_files
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
