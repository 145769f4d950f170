"""Datasets by name: the generated shapes, and what can be asked of any registered dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from meinst_d2.data.categories import read_category_names
from meinst_d2.data.shape_images import CATEGORIES
from meinst_d2.data.shapes import SPLITS


def register_shapes(root: str | os.PathLike[str]) -> None:
    """Register ``shapes_train`` and ``shapes_val`` below ``root``, in place of an earlier registration."""
    for split in SPLITS:
        name = f"shapes_{split}"
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        annotations = Path(root) / "annotations" / f"instances_{split}.json"
        metadata = {"thing_classes": list(CATEGORIES)}
        register_coco_instances(name, metadata, str(annotations), str(Path(root) / split))


register_shapes(Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "shapes")


def require_dataset(name: str) -> None:
    """Raise a ValueError, or a FileNotFoundError, if the dataset cannot be loaded."""
    if name not in DatasetCatalog:
        near = [known for known in DatasetCatalog.list() if known.split("_")[0] == name.split("_")[0]]
        raise ValueError(
            f"the dataset {name!r} is not registered"
            + (f" (did you mean {', '.join(near)}?)" if near else "")
            + ": register it with detectron2.data.datasets.register_coco_instances"
        )
    file = MetadataCatalog.get(name).get("json_file")
    if file is not None and not os.path.isfile(file):
        hint = "run tools/make_shapes.py" if name.startswith("shapes_") else "set DETECTRON2_DATASETS to where it is"
        raise FileNotFoundError(f"the dataset {name!r} has no annotation file {file}: {hint}")


def dataset_dicts(name: str) -> list[dict[str, Any]]:
    """The records of a registered dataset."""
    require_dataset(name)
    return DatasetCatalog.get(name)


def class_names(name: str) -> list[str] | None:
    """The classes of a registered dataset, without loading its annotations where that can be helped.

    Returns:
        In the order of the contiguous class ids, or None where only loading would tell.
    """
    metadata = MetadataCatalog.get(name)
    names = metadata.get("thing_classes")
    if names is None and metadata.get("json_file") is not None:
        names = read_category_names(metadata.json_file)
    return names
