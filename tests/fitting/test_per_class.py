from collections import Counter

import numpy as np
import pytest

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.encoding import PCABasis, fit_pca
from meinst_d2.fitting import count as fit
from meinst_d2.fitting.count import count_moments, fit_classes
from meinst_d2.reconstruction.encodings import make_encodings
from meinst_d2.reconstruction.measure import Quality, measure_encodings
from tests.conftest import blob_masks, moments_of


def annotations(counts: list[int], size: int = 10) -> list[InstanceAnnotation]:
    """Ellipses of class 0, 1, ...; those of odd classes lie on one half of the box only."""
    found = []
    for category, count in enumerate(counts):
        masks = blob_masks(np.random.default_rng(category), count, size)
        if category % 2:
            masks[:, :, size // 2 :] = False
            masks[:, 0, 0] = True
        found += [InstanceAnnotation(mask, (0, 0, size, size), (size, size), category, False) for mask in masks]
    return found


def test_every_class_gets_the_pca_of_its_own_masks_and_small_ones_that_of_all() -> None:
    found = annotations([60, 80, 3, 0])
    fitted = fit_classes(found, 4, 10, 5, min_masks=20)
    assert fitted.counts == [60, 80, 3, 0] and fitted.shared == [2, 3] and fitted.moments.count == 143
    for category in (0, 1):
        own = fit_pca(count_moments([a for a in found if a.category == category], 10)[0]).truncated(5)
        np.testing.assert_array_equal(fitted.bases[category].components, own.components)
        np.testing.assert_array_equal(fitted.bases[category].mean, own.mean)
    everything = fit_pca(count_moments(found, 10)[0]).truncated(5)
    for category in (2, 3):
        np.testing.assert_array_equal(fitted.bases[category].components, everything.components)


def test_masks_of_no_class_count_for_the_shared_dictionary_only() -> None:
    stray = [InstanceAnnotation(a.segmentation, a.box, a.image_size, -1, False) for a in annotations([30])]
    fitted = fit_classes([*annotations([40]), *stray], 1, 10, 5, min_masks=10)
    assert fitted.counts == [40] and fitted.moments.count == 70


def test_a_class_that_determines_fewer_components_shares() -> None:
    two = [InstanceAnnotation(a.segmentation, a.box, (10, 10), 1, False) for a in annotations([2])]
    assert fit_classes([*annotations([60]), *two * 25], 2, 10, 5, min_masks=10).shared == [1]


def test_too_few_masks_for_anyone() -> None:
    with pytest.raises(ValueError, match="5 of 5 annotations have a usable mask, 8 components need at least 9"):
        fit_classes(annotations([5]), 1, 10, 8, min_masks=2)


def measured(found: list[InstanceAnnotation], bases: list[PCABasis]) -> Quality:
    family, num_classes = ("class-pca", len(bases)) if len(bases) > 1 else ("pca", None)
    encodings = list(make_encodings(family, [10], [4], [True], [False], bases))
    return measure_encodings(found, encodings, num_classes, templates_only=True).quality(0)


def test_dictionaries_of_ones_own_class_reconstruct_better() -> None:
    found = annotations([200, 200])
    fitted = fit_classes(found, 2, 10, 4, min_masks=20)
    own, shared = measured(found, fitted.bases), measured(found, [fit_pca(fitted.moments).truncated(4)])
    assert own.template_iou > shared.template_iou + 0.01
    first, second = (
        measured([a for a in found if a.category == k], fitted.bases[k : k + 1]).template_iou for k in (0, 1)
    )
    assert own.template_iou == pytest.approx((first + second) / 2)
    strays = [InstanceAnnotation(a.segmentation, a.box, a.image_size, -1, False) for a in found[:50]]
    assert measured([*found, *strays], fitted.bases) == own  # no class, no dictionary


@pytest.fixture
def ellipses(monkeypatch: pytest.MonkeyPatch) -> list[InstanceAnnotation]:
    """900, a crowd region among them, in chunks of 100."""
    monkeypatch.setattr(fit, "CHUNK", 100)
    masks = blob_masks(np.random.default_rng(0), 900, 16)
    found = [InstanceAnnotation(mask, (0, 0, 16, 16), (16, 16), 1, False) for mask in masks]
    found[5] = InstanceAnnotation(None, (0, 0, 16, 16), (16, 16), 1, True)
    return found


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_counts_the_same(ellipses: list[InstanceAnnotation], workers: int) -> None:
    moments, skipped = count_moments(ellipses, 16, workers)
    expected = moments_of(np.stack([a.segmentation for a in ellipses if not a.iscrowd]))
    assert moments.count == 899 and (moments.cooccurrence == expected.cooccurrence).all()
    assert skipped == Counter({"crowd region": 1})


def test_a_worker_that_fails_fails_the_fit(ellipses: list[InstanceAnnotation], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "CHUNK", 100)
    broken = [*ellipses, InstanceAnnotation([], (0,), (1, 1), 1, False)]  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        count_moments(broken, 16, 2)
