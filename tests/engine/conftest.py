"""Data that several files train on."""

from pathlib import Path

import pytest
from soaking.run import make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What runs in processes of their own train on."""
    folder = tmp_path_factory.mktemp("soak")
    make_data(folder)
    return folder
