"""Encodings under one name: encoders, which work on templates, and rivals, which work on masks of any size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from meinst_d2.encoding import (
    ClassPCAEncoder,
    DCTEncoder,
    FittedEncoder,
    MaskEncoder,
    PCABasis,
    PCAEncoder,
    PixelEncoder,
)
from meinst_d2.masks.paste import stretch
from meinst_d2.masks.rasterize import BoolArray, crop_bitmask
from meinst_d2.reconstruction.baselines import BinaryGrid, ChebyshevRadius, MaskCodec, PolarRays

FAMILIES = {
    "pca": "PCA",
    "class-pca": "PCA per class",
    "dct": "DCT",
    "grid": "grid",
    "area-grid": "grid",
    "polar": "polar rays",
    "chebyshev": "Chebyshev radius",
}
"""Their names in pictures. Both grids are S x S bits: "grid" is the template that a network would be taught, rasterised
from the polygons at S x S; in "area-grid" a cell is set where the mask at its own resolution covers half of it."""


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


BasesOf = Callable[[str, int, bool, int], Sequence[PCABasis]]
"""(family, S, sigmoid, D) -> the dictionary, or one per class."""


def fitted_encodings(
    family: str,
    mask_size: int,
    dims: Sequence[int],
    sigmoids: Sequence[bool],
    whitens: Sequence[bool],
    bases_of: BasesOf,
) -> Iterator[Encoding]:
    """Encodings of "pca" or "class-pca" for every combination of settings.

    Args:
        family: which.
        mask_size: S.
        dims: every D.
        sigmoids, whitens: the settings to combine.
        bases_of: the dictionaries.
    """
    for sigmoid, whiten, dim in itertools.product(sigmoids, whitens, dims):
        settings: dict[str, Any] = {"dim": dim, "mask_size": mask_size, "sigmoid": sigmoid, "whiten": whiten}
        bases = bases_of(family, mask_size, sigmoid, dim)
        encoder: FittedEncoder
        if family == "class-pca":
            encoder = ClassPCAEncoder(num_classes=len(bases), **settings)
        else:
            encoder = PCAEncoder(**settings)
        encoder.load_bases(bases)
        yield Encoding(family, encoder.eval(), sigmoid, whiten)


def dct_encodings(
    mask_size: int, dims: Sequence[int], sigmoids: Sequence[bool], whitens: Sequence[bool]
) -> Iterator[Encoding]:
    """Encodings of "dct" for every combination of settings."""
    for sigmoid, whiten, dim in itertools.product(sigmoids, whitens, dims):
        encoder = DCTEncoder(dim=dim, mask_size=mask_size, sigmoid=sigmoid, whiten=whiten)
        yield Encoding("dct", encoder.eval(), sigmoid, whiten)


def other_encodings(family: str, mask_sizes: Sequence[int]) -> Iterator[Encoding]:
    """Encodings of the other families: grids at every S, outlines in their one length."""
    if family == "polar":
        yield Encoding(family, PolarRays())
    elif family == "chebyshev":
        yield Encoding(family, ChebyshevRadius())
    else:
        for size in mask_sizes:
            grid = BinaryGrid(mask_size=size) if family == "area-grid" else PixelEncoder(mask_size=size).eval()
            yield Encoding(family, grid)


def redraw_templates(
    encoder: MaskEncoder, templates: BoolArray, classes: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float32]:
    """Probabilities that an encoder makes of templates: what a network would predict that makes no error.

    Args:
        encoder: in evaluation mode, on the CPU.
        templates: (M, S, S).
        classes: (M,), for class-specific encoders.

    Returns:
        (M, S, S).
    """
    labels = None if classes is None else torch.from_numpy(classes)
    return encoder.decode(encoder.encode(torch.from_numpy(templates), labels), labels).numpy()


@torch.no_grad()
def redraw(encoding: Encoding, mask: BoolArray) -> BoolArray:
    """A mask of any size, encoded and decoded by an encoding that is not class-specific.

    Args:
        encoding: what redraws it.
        mask: (H, W).

    Returns:
        (H, W).
    """
    height, width = mask.shape
    if not isinstance(encoding.codec, MaskEncoder):
        return encoding.codec.decode(encoding.codec.encode(mask), height, width)
    template = crop_bitmask(mask, (0, 0, width, height), encoding.codec.mask_size)
    return stretch(redraw_templates(encoding.codec, template[None])[0], height, width)
