"""PCA components as a file: the published .npz layout, and where the components came from.

Published keys, all float32 with a leading axis of one class: ``components_c`` (1, D, S*S), ``mean_c`` (1, S*S),
``explained_variance_c`` (1, D), ``ratio_c`` (1, D). Files written here also hold ``provenance``, a JSON text.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meinst_d2.encoding.pca import PCABasis
from meinst_d2.files import atomic_path

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest deviation of ``components @ components.T`` from the identity; published float32 files reach 1e-5."""


@dataclass(frozen=True)
class Components:
    """A dictionary read from a file.

    Attributes:
        basis: the dictionary, float32.
        provenance: what the fit recorded (datasets, num_masks, sigmoid, whiten, clamp, versions); empty for files of
            the published tool.
    """

    basis: PCABasis
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sigmoid(self) -> bool:
        """Whether the components belong to logits, as recorded, or else as the mean shows."""
        return bool(self.provenance.get("sigmoid", self.basis.sigmoid))

    @property
    def whiten(self) -> bool | None:
        """The whitening that the fit was told of, which does not alter the components; None where not recorded."""
        return self.provenance.get("whiten")


def save_components(path: str | os.PathLike[str], basis: PCABasis, provenance: Mapping[str, Any]) -> None:
    """Write a dictionary, replacing ``path`` only once the file is complete.

    Args:
        path: the .npz file.
        basis: the dictionary.
        provenance: anything JSON can hold.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(
            file,
            components_c=basis.components[None].astype(np.float32),
            mean_c=basis.mean[None].astype(np.float32),
            explained_variance_c=basis.explained_variance[None].astype(np.float32),
            ratio_c=basis.explained_variance_ratio[None].astype(np.float32),
            provenance=np.array(json.dumps(dict(provenance), sort_keys=True)),
        )


def load_components(path: str | os.PathLike[str]) -> Components:
    """Read and check a dictionary, from :func:`save_components` or from the published tool.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a readable .npz, or its contents are not a dictionary; the sentence says which.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there are no components at {path}: make them with fit_pca.py --output {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a readable components file ({error}): make it again with fit_pca.py"
        ) from error
    try:
        return _components_from_arrays(arrays)
    except ValueError as error:
        raise ValueError(f"{path} holds no usable components: {error}. Make them again with fit_pca.py") from error


def _components_from_arrays(arrays: Mapping[str, np.ndarray]) -> Components:
    names = ("components_c", "mean_c", "explained_variance_c", "ratio_c")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name in names:
        array = arrays[name]
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name} has dtype {array.dtype} instead of float32")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")
    components, mean, variance, ratio = (arrays[name].astype(np.float32) for name in names)
    _check_shapes(components, mean, variance, ratio)
    rows = components[0].astype(np.float64)
    deviation = np.abs(rows @ rows.T - np.eye(len(rows))).max()
    if deviation > ORTHONORMAL_TOLERANCE:
        raise ValueError(f"the rows of components_c are not orthonormal (off by {deviation:.2g})")
    if variance.min() <= 0:
        raise ValueError(f"explained_variance_c holds {variance.min():.3g}, variances must be positive")
    basis = PCABasis(components[0], mean[0], variance[0], ratio[0])
    return Components(basis, _read_provenance(arrays.get("provenance")))


def _check_shapes(components: np.ndarray, mean: np.ndarray, variance: np.ndarray, ratio: np.ndarray) -> None:
    if components.ndim != 3 or components.shape[0] != 1 or 0 in components.shape:
        raise ValueError(f"components_c has shape {components.shape} instead of (1, D, S*S)")
    _, dim, pixels = components.shape
    if round(pixels**0.5) ** 2 != pixels:
        raise ValueError(f"components_c has rows of {pixels} pixels, which is no square")
    if dim > pixels:
        raise ValueError(f"components_c has {dim} rows of only {pixels} pixels")
    for name, array, shape in (
        ("mean_c", mean, (1, pixels)),
        ("explained_variance_c", variance, (1, dim)),
        ("ratio_c", ratio, (1, dim)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape} instead of {shape}")


def _read_provenance(array: np.ndarray | None) -> Mapping[str, Any]:
    if array is None:
        return {}
    try:
        provenance = json.loads(str(array))
    except json.JSONDecodeError as error:
        raise ValueError(f"its provenance is not JSON ({error})") from error
    if not isinstance(provenance, dict):
        raise ValueError("its provenance is not a JSON object")
    return provenance
