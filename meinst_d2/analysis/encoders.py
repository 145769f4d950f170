"""The encoder whose limit is measured: from components, from a checkpoint, or fitted on the ground truth."""

from __future__ import annotations

import os
from collections.abc import Sequence

from meinst_d2.checkpoint.readers import read_checkpoint
from meinst_d2.data.annotations import InstanceAnnotation
from meinst_d2.encoding import (
    ClassPCAEncoder,
    Components,
    FittedEncoder,
    PCABasis,
    PCAEncoder,
    SigmoidClamp,
    fit_pca,
)
from meinst_d2.fitting.count import count_moments


def encoder_of(components: Components) -> FittedEncoder:
    """The encoder of a components file, in evaluation mode."""
    basis = components.basis
    settings = {"dim": basis.dim, "mask_size": basis.mask_size, "sigmoid": components.sigmoid}
    encoder: FittedEncoder
    if len(components.bases) > 1:
        encoder = ClassPCAEncoder(num_classes=len(components.bases), **settings)
    else:
        encoder = PCAEncoder(**settings)
    encoder.load_bases(components.bases)
    encoder.eval()
    return encoder


def encoder_of_checkpoint(path: str | os.PathLike[str]) -> FittedEncoder:
    """The encoder whose dictionary travels with a detector's weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds no dictionary, or could run code.
    """
    checkpoint = read_checkpoint(path)
    weights = checkpoint["model"]
    buffers = {}
    for name in ("components", "means", "explained_variances"):
        keys = [key for key in weights if key.endswith((f"mask_encoder.{name}", f"mask_encoding.{name}"))]
        if not keys:
            raise ValueError(
                f"{path} holds no components of an encoder: name their file with --components, or leave both out to "
                "fit an encoding on the ground truth"
            )
        buffers[name] = weights[keys[0]].float()
    components = buffers["components"].reshape(-1, *buffers["components"].shape[-2:])
    classes, dim, pixels = components.shape
    means, variances = buffers["means"].reshape(classes, pixels), buffers["explained_variances"].reshape(classes, dim)
    if not bool((variances > 0).all()):
        raise ValueError(f"{path} holds an encoder that was never fitted: name a file with --components")
    bases = [
        # Shares of the whole variance are not in a checkpoint, and nothing here asks for them.
        PCABasis(c.numpy(), m.numpy(), v.numpy(), (v / v.sum()).numpy())
        for c, m, v in zip(components, means, variances, strict=True)
    ]
    about = checkpoint.get("meinst")
    known = {"sigmoid": about["sigmoid"]} if isinstance(about, dict) and "sigmoid" in about else {}
    return encoder_of(Components(tuple(bases), known))


def fitted_encoder(annotations: Sequence[InstanceAnnotation], mask_size: int, dim: int) -> FittedEncoder:
    """An encoder fitted on the masks themselves: the best that S and D allow on them.

    Args:
        annotations: of objects.
        mask_size: S.
        dim: D.

    Raises:
        ValueError: the masks determine fewer components.
    """
    clamp = SigmoidClamp()
    moments, _ = count_moments(annotations, mask_size)
    return encoder_of(Components((fit_pca(moments, clamp).truncated(dim),), {"sigmoid": True}))
