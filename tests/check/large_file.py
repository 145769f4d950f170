"""A large COCO file of random outlines, written as it is made: python -m tests.check.large_file OUT.json MEGABYTES."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

OBJECTS = 7
POINTS = 24
KINDS = 64


def write_large(path: Path, megabytes: float, points: int = POINTS) -> int:
    """Write annotations, then images and categories; returns how many annotations."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    circle = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    number, written = 0, 0
    with open(path, "w") as file:
        file.write('{"annotations": [')
        while written < 0.97 * megabytes * 1e6:
            center, radius = rng.uniform(100, 300, 2), rng.uniform(5, 90)
            outline = center + circle * radius * rng.uniform(0.7, 1, (points, 1))
            low, high = outline.min(axis=0), outline.max(axis=0)
            annotation = {
                "id": number + 1,
                "image_id": number // OBJECTS + 1,
                "category_id": number % KINDS + 1,
                "iscrowd": 0,
                "area": round(float(radius**2), 2),
                "bbox": [round(v, 2) for v in (*low, *(high - low))],
                "segmentation": [[round(v, 2) for v in outline.ravel().tolist()]],
            }
            written += file.write(("," if number else "") + json.dumps(annotation))
            number += 1
        file.write('], "images": [')
        images = (
            {"id": k + 1, "file_name": f"{k:012}.jpg", "height": 480, "width": 640}
            for k in range(-(-number // OBJECTS))
        )
        for k, image in enumerate(images):
            file.write(("," if k else "") + json.dumps(image))
        categories = [{"id": k + 1, "name": f"class {k}"} for k in range(KINDS)]
        file.write('], "categories": ' + json.dumps(categories) + "}")
    return number


if __name__ == "__main__":
    print(write_large(Path(sys.argv[1]), float(sys.argv[2]), *map(int, sys.argv[3:])))
