"""The libraries that users bring take our predictions as docs/other-tools.md says."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import meinst_d2
from meinst_d2.model_zoo import TrainedModel


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return meinst_d2.load("nuclei", device="cpu")


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Twelve bright discs on dark ground, as nuclei are in fluorescence."""
    image = Image.new("RGB", (400, 300), (12, 12, 12))
    for number in range(12):
        x, y = 50 + 100 * (number % 4), 50 + 100 * (number // 4)
        ImageDraw.Draw(image).ellipse((x - 15, y - 12, x + 15, y + 12), fill=(150, 150, 150))
    image.save(tmp_path / "discs.png")
    return tmp_path / "discs.png"


def test_supervision(model: TrainedModel, discs: Path) -> None:
    sv = pytest.importorskip("supervision", reason="supervision is an extra: make test-extras")
    found = model(discs, min_score=0.5)
    detections = sv.Detections.from_detectron2({"instances": found})
    assert len(detections) == len(found) == 12
    assert np.array_equal(detections.mask, found.pred_masks.numpy())
    image = np.array(Image.open(discs))
    drawn = sv.MaskAnnotator().annotate(image.copy(), detections)
    assert (drawn != image).any(axis=2)[found.pred_masks.any(dim=0).numpy()].mean() > 0.9


def test_sahi(model: TrainedModel, discs: Path) -> None:
    pytest.importorskip("sahi", reason="sahi is an extra: make test-extras")
    from sahi.predict import get_prediction, get_sliced_prediction

    from meinst_d2.model_zoo.sahi_model import MEInstDetectionModel

    for adapter in (
        MEInstDetectionModel(model=model, confidence_threshold=0.5),
        MEInstDetectionModel("nuclei", confidence_threshold=0.5, device="cpu"),
    ):
        whole = get_prediction(str(discs), adapter)
        assert len(whole.object_prediction_list) == 12
        assert {found.category.name for found in whole.object_prediction_list} == {"nucleus"}
    slices = {"slice_height": 200, "slice_width": 200, "overlap_height_ratio": 0.25, "overlap_width_ratio": 0.25}
    sliced = get_sliced_prediction(str(discs), adapter, perform_standard_pred=False, verbose=0, **slices)
    assert len(sliced.object_prediction_list) == 12
    areas = sorted(found.mask.bool_mask.sum() for found in sliced.object_prediction_list)
    assert areas[0] > 0.75 * np.pi * 15 * 12
