"""Encodings under one name: encoders, which work on templates, and baselines, which work on masks of any size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.encoding import (
    ClassPCAEncoder,
    Components,
    DCTEncoder,
    FittedEncoder,
    MaskEncoder,
    PCABasis,
    PCAEncoder,
    PixelEncoder,
    SigmoidClamp,
    fit_pca,
)
from meinst_d2.fitting.count import MASKS_PER_COMPONENT, ClassFit, count_moments, fit_classes
from meinst_d2.masks.paste import stretch
from meinst_d2.masks.rasterize import BoolArray, crop_bitmask
from meinst_d2.reconstruction.baselines import BinaryGrid, ChebyshevRadius, MaskCodec, PolarRays

FAMILIES = {
    "pca": ("PCA", "tab:blue", "o"),
    "class-pca": ("PCA per class", "tab:green", "x"),
    "dct": ("DCT", "tab:orange", "s"),
    "grid": ("grid", "0.2", "D"),
    "area-grid": ("grid", "0.55", "v"),
    "polar": ("polar rays", "tab:red", "P"),
    "chebyshev": ("Chebyshev radius", "tab:purple", "X"),
}
"""Their names, colors and markers in pictures. Both grids are S x S bits: "grid" is the template that a network would
be taught, rasterised from the polygons at S x S; in "area-grid" a cell is set where the mask covers half of it."""


@dataclass(frozen=True)
class Encoding:
    """One encoding to measure.

    Attributes:
        family: one of ``FAMILIES``.
        codec: works on templates (an encoder, in evaluation mode on the CPU) or on masks of any size.
        sigmoid, whiten: of an encoder that has the choice.
    """

    family: str
    codec: MaskEncoder | MaskCodec
    sigmoid: bool | None = None
    whiten: bool | None = None

    @property
    def mask_size(self) -> int | None:
        """S, or None where there is no grid."""
        return getattr(self.codec, "mask_size", None)

    @property
    def length(self) -> int:
        """Numbers in the vector."""
        return self.codec.dim if isinstance(self.codec, MaskEncoder) else self.codec.length

    @property
    def settings(self) -> tuple[str, int | None, int, bool | None, bool | None]:
        """Family, S, length, sigmoid and whitening."""
        return self.family, self.mask_size, self.length, self.sigmoid, self.whiten


BasesOf = Callable[[str, int, bool, int], Sequence[PCABasis]]
"""(family, S, sigmoid, D) -> the dictionary, or one per class."""


def make_encodings(
    family: str,
    mask_sizes: Sequence[int],
    dims: Sequence[int] = (),
    sigmoids: Sequence[bool] = (True,),
    whitens: Sequence[bool] = (True,),
    bases: Sequence[PCABasis] | BasesOf = (),
    clamp: SigmoidClamp = SigmoidClamp(),
) -> Iterator[Encoding]:
    """Encodings of a family: outlines have one length, grids one per S, the others every combination of settings.

    Args:
        family: one of ``FAMILIES``.
        mask_sizes: S of each.
        dims, sigmoids, whitens, clamp: of "pca", "class-pca" and "dct".
        bases: of "pca" and "class-pca": the longest dictionary, or one per class, or what gives those of each setting.
    """
    if family in ("polar", "chebyshev"):
        yield Encoding(family, PolarRays() if family == "polar" else ChebyshevRadius())
    elif family in ("grid", "area-grid"):
        for size in mask_sizes:
            grid = BinaryGrid(mask_size=size) if family == "area-grid" else PixelEncoder(mask_size=size).eval()
            yield Encoding(family, grid)
    else:
        kind = {"pca": PCAEncoder, "class-pca": ClassPCAEncoder, "dct": DCTEncoder}[family]
        for size, sigmoid, whiten, dim in itertools.product(mask_sizes, sigmoids, whitens, dims):
            options: dict[str, Any] = {"sigmoid": sigmoid, "whiten": whiten, "clamp": clamp}
            its = bases(family, size, sigmoid, dim) if callable(bases) else [basis.truncated(dim) for basis in bases]
            if family == "class-pca":
                options["num_classes"] = len(its)
            encoder = kind(dim=dim, mask_size=size, **options)
            if isinstance(encoder, FittedEncoder):
                encoder.load_bases(its)
            yield Encoding(family, encoder.eval(), sigmoid, whiten)


def encodings_of(
    components: Components, dims: Sequence[int], num_classes: int, whitens: Sequence[bool] = (True,)
) -> Iterator[Encoding]:
    """Encodings with a file's components, of the ``dims`` below theirs and of theirs; ValueError for other classes."""
    bases, all_dims = components.bases, components.basis.dim
    if len(bases) not in (1, num_classes):
        raise ValueError(f"the components are for {len(bases)} classes, the annotations have {num_classes}")
    family, chosen = "pca" if len(bases) == 1 else "class-pca", {dim for dim in dims if dim < all_dims} | {all_dims}
    return make_encodings(family, [components.basis.mask_size], sorted(chosen), [components.sigmoid], whitens, bases)


@dataclass
class FittedDictionaries:
    """The dictionaries of a dataset at every S and D, of all masks and per class, fitted when first asked for.

    Attributes:
        annotations: with categories in [0, K).
        num_classes: K.
        dims: every D that will be asked for.
        per_class: whether dictionaries per class will be asked for.
        workers: processes.
    """

    annotations: Sequence[InstanceAnnotation]
    num_classes: int
    dims: Sequence[int]
    per_class: bool
    workers: int = 1
    _fits: dict[tuple[int, bool], tuple[PCABasis, ClassFit | None]] = field(default_factory=dict, init=False)

    def bases(self, family: str, mask_size: int, sigmoid: bool, dim: int) -> list[PCABasis]:
        """The dictionary of "pca", or the K of "class-pca", where classes with too few masks share that of all.

        Raises:
            ValueError: the masks determine fewer than D components.
        """
        of_all = self._fit(mask_size, sigmoid)[0]
        own = self.own_classes(mask_size, sigmoid, dim) if family == "class-pca" else {}
        classes = range(self.num_classes if family == "class-pca" else 1)
        return [own.get(k, of_all).truncated(dim) for k in classes]

    def own_classes(self, mask_size: int, sigmoid: bool, dim: int) -> dict[int, PCABasis]:
        """The classes that have a dictionary of their own at this D: 10 masks per component at least."""
        fit, enough = self._fit(mask_size, sigmoid)[1], MASKS_PER_COMPONENT * dim
        counts = enumerate(fit.counts if fit else ())
        return {k: fit.bases[k] for k, count in counts if fit and count >= enough and k not in fit.shared}

    def _fit(self, mask_size: int, sigmoid: bool) -> tuple[PCABasis, ClassFit | None]:
        if (mask_size, sigmoid) not in self._fits:
            clamp, by_class = SigmoidClamp() if sigmoid else None, None
            if self.per_class:
                least = MASKS_PER_COMPONENT * min(self.dims)
                options = {"min_masks": least, "clamp": clamp, "workers": self.workers}
                by_class = fit_classes(self.annotations, self.num_classes, mask_size, max(self.dims), **options)
                every = by_class.every
            else:
                every = fit_pca(count_moments(self.annotations, mask_size, self.workers)[0], clamp)
            self._fits[mask_size, sigmoid] = (every, by_class)
        return self._fits[mask_size, sigmoid]


def reconstruct_templates(
    encoder: MaskEncoder, templates: BoolArray, classes: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float32]:
    """(M, S, S) probabilities that an encoder makes of templates: what a network without errors would predict.

    Args:
        encoder: in evaluation mode, on the CPU.
        templates: (M, S, S).
        classes: (M,), for class-specific encoders.
    """
    masks = torch.from_numpy(templates)
    if classes is None or not encoder.class_specific:
        return encoder.decode(encoder.encode(masks)).numpy()
    probabilities = np.zeros(templates.shape, np.float32)
    for number in np.unique(classes):  # class by class: no dictionary is copied for every mask
        of_class, label = classes == number, torch.tensor(number)
        probabilities[of_class] = encoder.decode(encoder.encode(masks[of_class], label), label).numpy()
    return probabilities


@torch.no_grad()
def reconstruct(encoding: Encoding, mask: BoolArray) -> BoolArray:
    """(H, W) a mask of any size, encoded and decoded by an encoding that is not class-specific."""
    height, width = mask.shape
    if not isinstance(encoding.codec, MaskEncoder):
        return encoding.codec.decode(encoding.codec.encode(mask), height, width)
    template = crop_bitmask(mask, (0, 0, width, height), encoding.codec.mask_size)
    return stretch(reconstruct_templates(encoding.codec, template[None])[0], height, width)
