"""Datasets by name: the generated shapes, and what can be asked of any registered dataset."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.datasets import register_coco_instances

from meinst_d2.data.coco import read_category_names
from meinst_d2.data.shapes import CATEGORIES, SPLITS

UNREADABLE = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What Detectron2's ``load_coco_json`` raises on files that it cannot use."""


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


def register_coco(spec: str) -> str:
    """Register NAME=ANNOTATIONS.json:IMAGES, a dataset in COCO's format, and return the name.

    Raises:
        ValueError: ``spec`` has another form, or the name is already registered for other files.
    """
    name, _, files = spec.partition("=")
    json_file, dot_json, images = files.partition(".json:")
    if not (name and json_file and dot_json and images):
        raise ValueError(
            f"--coco-dataset {spec}: give NAME=ANNOTATIONS.json:IMAGES, such as mine=a/train.json:a/images"
        )
    json_file += ".json"
    if name not in DatasetCatalog:
        register_coco_instances(name, {}, json_file, images)
    known = MetadataCatalog.get(name)
    if (known.get("json_file"), known.get("image_root")) != (json_file, images):
        raise ValueError(f"--coco-dataset {spec}: {name} is a dataset of other files already; choose another name")
    return name


class DatasetError(ValueError):
    """A dataset that Detectron2 cannot load, and where to look."""


@contextmanager
def loading(*names: str) -> Iterator[None]:
    """Within the block, what Detectron2 stumbles over in an annotation file becomes a DatasetError."""
    try:
        yield
    except DatasetError:
        raise
    except UNREADABLE as error:
        files = [file for name in names if (file := MetadataCatalog.get(name).get("json_file")) is not None]
        reason = f"{type(error).__name__} {str(error).splitlines()[0] if str(error) else ''}".strip()
        hint = f": meinst check {' '.join(files)} says what is wrong" if files else ""
        raise DatasetError(f"the dataset {', '.join(names)} cannot be loaded ({reason}){hint}") from error


def require_dataset(name: str) -> None:
    """Raise a ValueError, or a FileNotFoundError, if the dataset cannot be loaded."""
    if name not in DatasetCatalog:
        near = [known for known in DatasetCatalog.list() if known.split("_")[0] == name.split("_")[0]]
        raise ValueError(
            f"the dataset {name!r} is not registered"
            + (f" (did you mean {', '.join(near)}?)" if near else "")
            + f": name its files with --coco-dataset {name}=ANNOTATIONS.json:IMAGES (meinst fit takes --coco-json), or "
            "register it as Detectron2 does"
        )
    if MetadataCatalog.get(name).get("evaluator_type") == "lvis" and importlib.util.find_spec("lvis") is None:
        raise ValueError(f"the dataset {name!r} needs the package lvis: run pip install 'meinst_d2[lvis]'")
    file = MetadataCatalog.get(name).get("json_file")
    if file is not None and not os.path.isfile(file):
        hint = "name one that exists"
        if name.startswith("shapes_"):
            hint = "run meinst shapes"
        elif Path(file).is_relative_to(os.environ.get("DETECTRON2_DATASETS", "datasets")):
            hint = "set DETECTRON2_DATASETS to where it is"
        raise FileNotFoundError(f"the dataset {name!r} has no annotation file {file}: {hint}")


def dataset_dicts(name: str) -> list[dict[str, Any]]:
    """The records of a registered dataset."""
    require_dataset(name)
    with loading(name):
        return DatasetCatalog.get(name)


def training_records(names: Sequence[str], *, filter_empty: bool = True) -> list[dict[str, Any]]:
    """The records of registered datasets of the same classes; ``filter_empty`` leaves out images without objects.

    Raises:
        DatasetError: one cannot be loaded, or no image is left.
    """
    with loading(*names):
        records = get_detection_dataset_dicts(list(names), filter_empty=False)
        for annotation in (annotation for record in records for annotation in record.get("annotations", ())):
            if annotation.get("iscrowd", 0) is None:  # the filter takes it for crowd, the mapper does not
                annotation["iscrowd"] = 0
        if filter_empty and "annotations" in records[0]:
            records = filter_images_with_only_crowd_annotations(records)
        assert records, "no image has an annotation to learn"
    return records


def class_names(name: str) -> list[str] | None:
    """The classes of a registered dataset, read without its annotations; None where only loading would tell."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("thing_classes") is None and metadata.get("json_file") is not None:
        return read_category_names(metadata.json_file)
    return metadata.get("thing_classes")


@contextmanager
def counting_classes(cfg: CfgNode) -> Iterator[None]:
    """Numbers of classes that the block does not set become that of the config's first dataset, where it is known."""
    nodes = ("MEINST", "RETINANET")
    defaults = [cfg.MODEL[node].NUM_CLASSES for node in nodes]
    for node in nodes:
        cfg.MODEL[node].NUM_CLASSES = -1
    yield
    names = None
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[:1]:
        with suppress(ValueError, OSError):  # the checks before the start say what is wrong
            require_dataset(name)
            names = class_names(name)
    for node, default in zip(nodes, defaults, strict=True):  # looked up again: old configs come with nodes of their own
        if cfg.MODEL[node].NUM_CLASSES == -1:
            cfg.MODEL[node].NUM_CLASSES = len(names) if names else default
