"""A mask <-> a vector: encoders, their fit and their files. Needs torch, numpy and fvcore only."""

from meinst_d2.encoding.clamp import SigmoidClamp
from meinst_d2.encoding.components import Components, load_components, save_components
from meinst_d2.encoding.dct import DCTEncoder
from meinst_d2.encoding.encoder import MASK_ENCODER_REGISTRY, MaskEncoder, PixelEncoder
from meinst_d2.encoding.moments import PixelMoments
from meinst_d2.encoding.pca import ClassPCAEncoder, FittedEncoder, PCABasis, PCAEncoder, fit_pca

__all__ = [
    "MASK_ENCODER_REGISTRY",
    "ClassPCAEncoder",
    "Components",
    "DCTEncoder",
    "FittedEncoder",
    "MaskEncoder",
    "PCABasis",
    "PCAEncoder",
    "PixelEncoder",
    "PixelMoments",
    "SigmoidClamp",
    "fit_pca",
    "load_components",
    "save_components",
]
