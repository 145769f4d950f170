from collections import Counter

import numpy as np
import pytest

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.encoding import PixelMoments, fit_pca
from meinst_d2.fitting import count as fit
from meinst_d2.fitting.count import count_moments, measure_reconstruction, reconstruct
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


@pytest.mark.parametrize("magnitude", [3.77, None])
def test_reconstruction_against_the_definition(
    annotations: list[InstanceAnnotation], magnitude: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "CHUNK", 200)
    moments, _ = count_moments(annotations, 16)
    clamp = None
    basis = fit_pca(moments, clamp)
    if magnitude is not None:
        basis = type(basis)(
            basis.components, magnitude * (2 * basis.mean - 1), basis.explained_variance, basis.explained_variance_ratio
        )
    rows = measure_reconstruction(annotations, [basis], [5, 40], magnitude, workers=2)
    masks = np.stack([a.segmentation for a in annotations if not a.iscrowd]).reshape(899, -1)
    for row in rows:
        (drawn,) = reconstruct(masks, basis, [row.dim], magnitude)
        assert row.iou == pytest.approx(((masks & drawn).sum(1) / (masks | drawn).sum(1)).mean())
        foreground = (masks & drawn).sum() / (masks | drawn).sum()
        background = (~masks & ~drawn).sum() / (~masks | ~drawn).sum()
        assert row.pooled_miou == pytest.approx((foreground + background) / 2)
    assert rows[1].iou > rows[0].iou > 0.7


def test_pixels_and_fixed_logits_reconstruct_alike(annotations: list[InstanceAnnotation]) -> None:
    """A fixed clamp only scales the signal around its threshold."""
    moments, _ = count_moments(annotations, 16)
    basis = fit_pca(moments, None)
    masks = np.stack([a.segmentation for a in annotations[10:60]]).reshape(50, -1)
    logits = type(basis)(
        basis.components, 2 * (2 * basis.mean - 1), basis.explained_variance, basis.explained_variance_ratio
    )
    (pixels,), (signs,) = reconstruct(masks, basis, [20], None), reconstruct(masks, logits, [20], 2.0)
    assert (pixels != signs).mean() < 1e-3
