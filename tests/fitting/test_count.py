from collections import Counter

import numpy as np
import pytest

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.encoding import PixelMoments
from meinst_d2.fitting import count as fit
from meinst_d2.fitting.count import count_moments
from tests.conftest import blob_masks


@pytest.fixture(scope="module")
def annotations() -> list[InstanceAnnotation]:
    masks = blob_masks(np.random.default_rng(0), 900, 16)
    found = [InstanceAnnotation(mask, (0, 0, 16, 16), (16, 16), 1, False) for mask in masks]
    found[5] = InstanceAnnotation(None, (0, 0, 16, 16), (16, 16), 1, True)
    return found


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_counts_the_same(
    annotations: list[InstanceAnnotation], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "CHUNK", 100)
    moments, skipped = count_moments(annotations, 16, workers)
    expected = PixelMoments(16)
    expected.update(np.stack([a.segmentation for a in annotations if not a.iscrowd]))
    assert moments.count == 899 and (moments.cooccurrence == expected.cooccurrence).all()
    assert skipped == Counter({"crowd region": 1})


def test_a_worker_that_fails_fails_the_fit(
    annotations: list[InstanceAnnotation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "CHUNK", 100)
    broken = [*annotations, InstanceAnnotation([], (0,), (1, 1), 1, False)]  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        count_moments(broken, 16, 2)
