"""Detectron2 is a prerequisite that no package index serves: say how to get it where it is missing."""

import importlib.util

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
        raise ImportError(
            "this part of meinst_d2 needs Detectron2, which is not installed: with torch, torchvision "
            f"and 'setuptools<81' in the environment, run {DETECTRON2_INSTALL}"
        )
