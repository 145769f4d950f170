"""Package metadata. Detectron2 is a prerequisite on no package index; README.md says how to install it."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "meinst_d2/__init__.py").read_text(), re.MULTILINE)[1]


class BuildWithConfigs(build_py):
    """Put the configs into the package, where model_zoo finds them once it is installed."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):  # a checkout has them
            target = Path(self.build_lib) / "meinst_d2/model_zoo/configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


EXPORT = ["onnx", "onnxruntime", "onnxscript"]
DOCS = ["mkdocs-material", "mkdocstrings[python]", "mkdocs-jupyter"]

setup(
    name="meinst_d2",
    version=VERSION,
    description="Instance segmentation by mask encoding (MEInst) as a Detectron2 extension",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["meinst_d2", "meinst_d2.*"]),
    cmdclass={"build_py": BuildWithConfigs},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy",
        "pycocotools>=2.0.6",
        "faster-coco-eval>=1.8",
        "fvcore>=0.1.5,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        "matplotlib",
        "msgspec",
        "opencv-python-headless",
        "Pillow",
        "safetensors",
        "shapely",
        "threadpoolctl",
        "tqdm",
    ],
    entry_points={"console_scripts": ["meinst = meinst_d2.commands:main"]},
    extras_require={
        "albumentations": ["albumentations"],
        "dev": [
            *DOCS,
            *EXPORT,
            "ipykernel",
            "nbclient",
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "scikit-learn",
            "timm",
            "types-tqdm",
        ],
        "docs": DOCS,
        "export": EXPORT,
        "fuzz": ["atheris"],
        "lvis": ["lvis"],
        "sahi": ["sahi"],
        "supervision": ["supervision"],
        "timm": ["timm"],
    },
)
