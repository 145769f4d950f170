"""PCA components as a file: the published .npz layout, and where the components came from.

Published keys, all float32 with a leading axis of C classes, where C = 1 means one dictionary for all of them:
``components_c`` (C, D, S*S), ``mean_c`` (C, S*S), ``explained_variance_c`` (C, D), ``ratio_c`` (C, D). Files written
here also hold ``provenance``, a JSON string.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from meinst_d2.encoding.pca import PCABasis
from meinst_d2.files import atomic_path

ORTHONORMAL_TOLERANCE = 1e-3
"""Largest deviation of ``components @ components.T`` from the identity; published float32 files reach 1e-5."""

ARRAYS = ("components_c", "mean_c", "explained_variance_c", "ratio_c")
PROVENANCE = "provenance"
LARGEST = 2**29
"""Bytes of one array: dictionaries of 28 x 28 pixels and 60 components for 2,800 classes."""
DENSEST = 200
"""Times that an array may be larger than in the file. Real components deflate to 90 %, bombs a thousandfold."""
LONGEST_HEADER = 10_000


@dataclass(frozen=True)
class Components:
    """Dictionaries read from a file.

    ``provenance`` is what the fit recorded (datasets, num_masks, sigmoid, whiten, clamp, versions); empty for files of
    the published tool.
    """

    bases: tuple[PCABasis, ...]  # the dictionary of all classes, or one per class; float32, all of one D and S
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def basis(self) -> PCABasis:
        """The first dictionary."""
        return self.bases[0]

    @property
    def sigmoid(self) -> bool:
        """Whether the components belong to logits, as recorded, or else as the mean shows."""
        return bool(self.provenance.get("sigmoid", self.basis.sigmoid))

    @property
    def whiten(self) -> bool | None:
        """The whitening that the fit was told of, which does not alter the components; None where not recorded."""
        return self.provenance.get("whiten")


def save_components(path: str | os.PathLike[str], bases: Sequence[PCABasis], provenance: Mapping[str, Any]) -> None:
    """Write dictionaries, replacing ``path`` only once the file is complete.

    Args:
        path: the .npz file.
        bases: the dictionary of all classes, or one per class.
        provenance: anything JSON can hold.
    """
    stacks = zip(*(vars(basis).values() for basis in bases), strict=True)  # in the order of ARRAYS
    arrays: dict[str, Any] = {
        name: np.stack(stack).astype(np.float32) for name, stack in zip(ARRAYS, stacks, strict=True)
    }
    arrays[PROVENANCE] = np.array(json.dumps(dict(provenance), sort_keys=True))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def load_components(path: str | os.PathLike[str]) -> Components:
    """Read and check a dictionary, from :func:`save_components` or from the published tool.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a readable .npz, or its contents are not a dictionary; the sentence says which.
            Arrays of objects, or that would grow absurdly, are refused before they are made.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there are no components at {path}: make them with meinst fit --output {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.compress_size for member in archive.infolist()) > os.path.getsize(path):
                raise ValueError("its members overlap")  # and so might look less dense than they are
            present = set(archive.namelist())
            arrays = {name: _read_array(archive, name) for name in (*ARRAYS, PROVENANCE) if f"{name}.npy" in present}
        return _components_from_arrays(arrays)
    except Exception as error:  # whatever damaged bytes lead to
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} holds no usable components: {reason}. Make them again with meinst fit") from error


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray[Any, Any]:
    member = archive.getinfo(f"{name}.npy")
    most = min(LARGEST, DENSEST * member.compress_size)
    if member.file_size > most:
        raise ValueError(
            f"{name} would grow from {member.compress_size:,} to {member.file_size:,} bytes, {most:,} are the most"
        )
    file = io.BytesIO(archive.read(member))
    first = np.lib.format.read_magic(file) == (1, 0)
    read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file, max_header_size=LONGEST_HEADER)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which could run code")
    num_bytes = member.file_size - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != num_bytes:
        raise ValueError(f"{name} should be {shape} of {dtype}, but has {num_bytes:,} bytes")
    file.seek(0)
    array: np.ndarray[Any, Any] = np.load(file, allow_pickle=False, max_header_size=LONGEST_HEADER)
    return array


def _components_from_arrays(arrays: Mapping[str, np.ndarray[Any, Any]]) -> Components:
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for name in ARRAYS:
        if not np.issubdtype(arrays[name].dtype, np.floating):
            raise ValueError(f"{name} has dtype {arrays[name].dtype} instead of float32")
    _check_shapes({name: arrays[name].shape for name in ARRAYS})
    for name in ARRAYS:
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds values that are not finite")
    with np.errstate(over="ignore"):
        components, mean, variance, ratio = (arrays[name].astype(np.float32) for name in ARRAYS)
    rows = components.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = np.abs(rows @ rows.transpose(0, 2, 1) - np.eye(rows.shape[1])).max()
    if not deviation <= ORTHONORMAL_TOLERANCE:
        raise ValueError(f"the rows of components_c are not orthonormal (off by {deviation:.2g})")
    if variance.min() <= 0:
        raise ValueError(f"explained_variance_c holds {variance.min():.3g}, variances must be positive")
    if not all(np.isfinite(array).all() for array in (mean, variance, ratio)):  # a float64 before
        raise ValueError("it holds values that float32 has not")
    bases = tuple(PCABasis(*arrays) for arrays in zip(components, mean, variance, ratio, strict=True))
    return Components(bases, _read_provenance(arrays.get(PROVENANCE)))


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    components = shapes["components_c"]
    if len(components) != 3 or 0 in components:
        raise ValueError(f"components_c has shape {components} instead of (C, D, S*S)")
    num_classes, dim, pixels = components
    if math.isqrt(pixels) ** 2 != pixels:
        raise ValueError(f"components_c has rows of {pixels} pixels, which are not a square")
    if dim > pixels:
        raise ValueError(f"components_c has {dim} rows of only {pixels} pixels")
    for name, shape in (
        ("mean_c", (num_classes, pixels)),
        ("explained_variance_c", (num_classes, dim)),
        ("ratio_c", (num_classes, dim)),
    ):
        if shapes[name] != shape:
            raise ValueError(f"{name} has shape {shapes[name]} instead of {shape}")


def _read_provenance(array: np.ndarray[Any, Any] | None) -> Mapping[str, Any]:
    if array is None:
        return {}
    if array.shape != () or array.dtype.kind != "U":
        raise ValueError(f"its provenance is {array.dtype} of shape {array.shape} instead of a string")
    try:
        provenance = json.loads(str(array))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its provenance is not JSON ({error})") from error
    if not isinstance(provenance, dict):
        raise ValueError("its provenance is not a JSON object")
    return provenance
