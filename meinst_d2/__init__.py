"""MEInst (mask encoding based instance segmentation) as a Detectron2 extension.

Importing this package imports neither torch nor Detectron2; ``import meinst_d2.modeling`` registers
the model, and :func:`add_meinst_config` adds its keys to a Detectron2 config.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "add_meinst_config"]

if TYPE_CHECKING:
    from meinst_d2.config import add_meinst_config


def __getattr__(name: str) -> Any:
    if name == "add_meinst_config":
        from meinst_d2.config import add_meinst_config

        return add_meinst_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
