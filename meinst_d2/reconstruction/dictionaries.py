"""Dictionaries to measure, fitted when they are first asked for."""

from __future__ import annotations

from collections.abc import Sequence

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.encoding import PCABasis, SigmoidClamp, fit_pca
from meinst_d2.fitting.count import count_moments
from meinst_d2.fitting.per_class import ClassFit, fit_classes

MASKS_PER_COMPONENT = 10
"""Of a class, for a dictionary of its own."""


class FittedDictionaries:
    """The dictionaries of a dataset at every S and D, of all masks and per class."""

    def __init__(
        self,
        annotations: Sequence[InstanceAnnotation],
        num_classes: int,
        dims: Sequence[int],
        *,
        per_class: bool,
        workers: int = 1,
    ) -> None:
        """
        Args:
            annotations: with categories in [0, K).
            num_classes: K.
            dims: every D that will be asked for.
            per_class: whether dictionaries per class will be asked for.
            workers: processes.
        """
        self._annotations, self._num_classes, self._dims = annotations, num_classes, dims
        self._per_class, self._workers = per_class, workers
        self._fits: dict[tuple[int, bool], tuple[PCABasis, ClassFit | None]] = {}

    def bases(self, family: str, mask_size: int, sigmoid: bool, dim: int) -> list[PCABasis]:
        """The dictionary of "pca", or the K of "class-pca", where classes with too few masks share that of all.

        Args:
            family: "pca" or "class-pca".
            mask_size: S.
            sigmoid: of logits, or of pixels.
            dim: D.

        Raises:
            ValueError: the masks determine fewer components.
        """
        of_all = self._fit(mask_size, sigmoid)[0].truncated(dim)
        if family == "pca":
            return [of_all]
        own = self.own_classes(mask_size, sigmoid, dim)
        return [own[k].truncated(dim) if k in own else of_all for k in range(self._num_classes)]

    def own_classes(self, mask_size: int, sigmoid: bool, dim: int) -> dict[int, PCABasis]:
        """The classes that have a dictionary of their own at this D: 10 masks per component at least."""
        fit = self._fit(mask_size, sigmoid)[1]
        if fit is None:
            return {}
        return {
            k: basis
            for k, (basis, count) in enumerate(zip(fit.bases, fit.counts, strict=True))
            if count >= MASKS_PER_COMPONENT * dim and k not in fit.shared
        }

    def _fit(self, mask_size: int, sigmoid: bool) -> tuple[PCABasis, ClassFit | None]:
        if (mask_size, sigmoid) not in self._fits:
            clamp = SigmoidClamp() if sigmoid else None
            by_class = None
            if self._per_class:
                by_class = fit_classes(
                    self._annotations,
                    self._num_classes,
                    mask_size,
                    max(self._dims),
                    min_masks=MASKS_PER_COMPONENT * min(self._dims),
                    clamp=clamp,
                    workers=self._workers,
                )
                moments = by_class.moments
            else:
                moments, _ = count_moments(self._annotations, mask_size, self._workers)
            self._fits[mask_size, sigmoid] = (fit_pca(moments, clamp), by_class)
        return self._fits[mask_size, sigmoid]
