"""Data that several files train on."""

from pathlib import Path

import pytest
from soaking.run import make_data

from meinst_d2.data.datasets import register_shapes
from meinst_d2.data.shapes import ShapesConfig, generate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs in processes of their own train on."""
    folder = tmp_path_factory.mktemp("soak")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """shapes_train and shapes_val, for runs in this process."""
    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 8, "val": 2}, ShapesConfig(height=64, width=64, max_side=50))
    register_shapes(root)
