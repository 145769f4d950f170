"""What the tests share. Imports nothing that test-core does not have."""

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch: tests run side by side, one a core

import numpy as np

ROOT = Path(__file__).parents[1]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """A folder with coco/ and coco_polygons/, named by MEINST_TEST_DATA or beside the repository."""
    folder = Path(os.environ.get("MEINST_TEST_DATA", ROOT.parent / "shared/data"))
    if not (folder / "coco").is_dir():
        pytest.skip(f"no real images at {folder}: set MEINST_TEST_DATA to a folder with coco/ in COCO's layout")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads go; those from this machine use no proxy."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """shapes_train and shapes_val, for runs in this process."""
    from meinst_d2.data.datasets import register_shapes
    from meinst_d2.data.shapes import ShapesConfig, generate

    root = tmp_path_factory.mktemp("shapes")
    generate(root, {"train": 8, "val": 2}, ShapesConfig(height=64, width=64, max_side=50))
    register_shapes(root)


def blob_masks(rng: np.random.Generator, count: int, size: int = 28) -> np.ndarray:
    """(count, size, size) bool masks: random ellipses, some with a hole."""
    y, x = np.mgrid[:size, :size] / size
    cx, cy = rng.uniform(0.35, 0.65, (2, count, 1, 1))
    rx, ry = rng.uniform(0.2, 0.6, (2, count, 1, 1))
    distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
    return (distance < 1) & (distance > rng.uniform(-0.5, 0.4, (count, 1, 1)))


def moments_of(masks: np.ndarray) -> Any:
    from meinst_d2.encoding import PixelMoments

    moments = PixelMoments(masks.shape[1])
    moments.update(masks)
    return moments
