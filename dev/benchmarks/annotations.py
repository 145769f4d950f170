"""The annotations and masks that benchmarks of fitting work on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.source import find_source

if TYPE_CHECKING:
    import numpy as np

    from meinst_d2.data.annotations import AnnotationTable

CHUNK = 4096


def annotation_files(data: Path | None) -> list[Path]:
    """Every instances file of the source."""
    return sorted(find_source(data).json_file.parents[2].rglob("instances_*.json"))


def read_polygons(data: Path | None) -> AnnotationTable:
    """The polygon instances of the source."""
    from meinst_d2.data.annotations import AnnotationTable
    from meinst_d2.data.coco import read_coco_json

    annotations = read_coco_json(*annotation_files(data))
    return AnnotationTable(a for a in annotations if isinstance(a.segmentation, list) and not a.iscrowd)


def sample_masks(polygons: AnnotationTable, count: int, mask_size: int) -> np.ndarray:
    """(count, S, S) different masks: objects of the source in boxes moved by up to a tenth of their sides."""
    import numpy as np

    from meinst_d2.masks.rasterize import rasterize_polygons

    rng = np.random.default_rng(0)
    boxes = np.array([a.box for a in polygons])
    chosen = rng.integers(0, len(boxes), count)
    sides = boxes[chosen, 2:] - boxes[chosen, :2]
    moved = (boxes[chosen] + np.tile(sides, 2) * rng.uniform(-0.1, 0.1, (count, 4))).astype(np.float32)
    masks = np.empty((count, mask_size, mask_size), bool)
    parts = [a.segmentation for a in polygons]
    for i in range(0, count, CHUNK):
        end = min(i + CHUNK, count)
        masks[i:end] = rasterize_polygons([parts[k] for k in chosen[i:end]], moved[i:end], mask_size)
    return masks


def write_json_of(data: Path | None, count: int, path: Path) -> None:
    """A COCO file of ``count`` polygon instances: those of the source, again and again."""
    texts = []
    for file in annotation_files(data):
        for annotation in json.loads(file.read_text())["annotations"]:
            if isinstance(annotation["segmentation"], list) and not annotation.get("iscrowd"):
                texts.append(json.dumps({**annotation, "image_id": 1})[1:])
    with open(path, "w") as out:
        out.write('{"images": [{"id": 1, "height": 640, "width": 640}], "annotations": [\n')
        for i in range(count):
            out.write(f'{"," if i else ""}{{"number": {i}, {texts[i % len(texts)]}\n')
        out.write("]}")
