"""A generated COCO-format dataset whose shapes are hard to describe by their outline.

Rings have holes, cut discs have two parts, stars and crescents are concave, bars are thin, blobs are irregular; objects
overlap, a few images hold crowd regions and a few hold nothing. Every image is a function of (seed, split, number).
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from meinst_d2.data.shapes.images import CATEGORIES, ShapesConfig, draw_image
from meinst_d2.files import atomic_path

SPLITS = ("train", "val")


def generate(
    root: str | os.PathLike[str],
    num_images: dict[str, int],
    config: ShapesConfig = ShapesConfig(),
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Write images to ``root/SPLIT/`` and annotations to ``root/annotations/instances_SPLIT.json``.

    Args:
        root: the folder.
        num_images: by split, "train" and "val".
        config: what the images look like.
        seed: not negative; the same seed gives the same pixels, for any number of workers.
        workers: processes.
    """
    for split, count in num_images.items():
        folder = Path(root) / split
        folder.mkdir(parents=True, exist_ok=True)
        work = partial(_write_image, folder, config, (seed, SPLITS.index(split)))
        context = multiprocessing.get_context("fork")
        with threadpool_limits(1), ProcessPoolExecutor(workers, mp_context=context) as pool:
            results = pool.map(work, range(count), chunksize=16)
            annotations = list(
                tqdm(results, total=count, desc=f"drawing {split:5}", unit=" images", dynamic_ncols=True)
            )
        with atomic_path(Path(root) / "annotations" / f"instances_{split}.json") as temporary:
            temporary.write_text(json.dumps(_coco(annotations, config)))


def _write_image(folder: Path, config: ShapesConfig, seed: tuple[int, int], number: int) -> list[dict[str, Any]]:
    image, annotations = draw_image(config, (*seed, number))
    Image.fromarray(image).save(folder / _file_name(number), compress_level=1)
    return annotations


def _file_name(number: int) -> str:
    return f"{number:06d}.png"


def _coco(annotations_per_image: list[list[dict[str, Any]]], config: ShapesConfig) -> dict[str, Any]:
    images, annotations = [], []
    for number, image_annotations in enumerate(annotations_per_image):
        images.append(
            {"id": number + 1, "file_name": _file_name(number), "height": config.height, "width": config.width}
        )
        for annotation in image_annotations:
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number + 1})
    return {
        "info": {"description": "meinst_d2 generated shapes"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)],
    }
