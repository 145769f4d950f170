#!/usr/bin/env python
"""Put images together to a large one, and compare what is found in it: image by image, in tiles, at once."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meinst_d2.commands import require_positive

EXAMPLES = """example (docs/real-data.md says where the images are from):
  dev/tiles.py nuclei nuclei/val.json:nuclei/stage1_train --overlap 0.25
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", help="a file, a URL or the name of a model in zoo/")
    add(
        "dataset",
        metavar="ANNOTATIONS.json:IMAGES",
        help="images in COCO's format; those of the commonest size are used",
    )
    add("--columns", type=int, default=6, help="images a side of the large one (default 6)")
    add("--tiles", type=int, help="side of a tile, in pixels (default: the images' shorter side)")
    add("--overlap", type=float, default=0.2, help="least share that neighbours have in common (default 0.2)")
    args = parser.parse_args(argv)
    require_positive(parser, args, "columns", "tiles")
    return args


def main() -> None:
    args = parse_args()
    # Imported here so that --help answers at once.
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
    from pycocotools import mask as coco_mask

    import meinst_d2
    from meinst_d2.data.coco import read_coco
    from meinst_d2.data.image_files import read_image
    from meinst_d2.evaluation.average_precision import GroundTruth, average_precision

    annotations, folder = args.dataset.split(":")
    truth = GroundTruth(read_coco(annotations))
    images = truth.dataset.images
    (height, width), _ = Counter((image["height"], image["width"]) for image in images).most_common(1)[0]
    of_size = [row for row, image in enumerate(images) if (image["height"], image["width"]) == (height, width)]
    chosen = of_size[: len(of_size) // args.columns * args.columns][: args.columns**2]
    if not chosen:
        sys.exit(f"tiles.py: {len(of_size)} images have the commonest size: choose fewer --columns")
    size = len(chosen) // args.columns * height, args.columns * width
    corner = {row: (place // args.columns * height, place % args.columns * width) for place, row in enumerate(chosen)}

    def placed(rle: Mapping[str, Any], row: int) -> dict[str, Any]:
        whole: npt.NDArray[np.uint8] = np.zeros(size, np.uint8, order="F")
        top, left = corner[row]
        whole[top : top + height, left : left + width] = coco_mask.decode(rle)
        encoded = coco_mask.encode(whole)
        return {"size": list(size), "counts": encoded["counts"].decode()}

    pixels = np.zeros((*size, 3), np.uint8)
    for row, (top, left) in corner.items():
        file = Path(folder) / images[row]["file_name"]
        pixels[top : top + height, left : left + width] = read_image(str(file), "RGB")
    objects = [i for i, row in enumerate(truth.dataset.image_rows.tolist()) if row in corner]
    found = []
    for number, i in enumerate(objects, 1):
        rle = placed(truth.mask_of(i), int(truth.dataset.image_rows[i]))
        about = {"bbox": coco_mask.toBbox(rle).tolist(), "area": int(coco_mask.area(rle)), "iscrowd": 0}
        category = truth.dataset.category_ids[truth.dataset.annotations[i].category]
        found.append({"id": number, "image_id": 1, "category_id": category, "segmentation": rle, **about})
    names = zip(truth.dataset.category_ids, truth.dataset.class_names, strict=True)
    content = {
        "images": [{"id": 1, "file_name": "large.png", "height": size[0], "width": size[1]}],
        "annotations": found,
        "categories": [{"id": id_, "name": name} for id_, name in names],
    }
    print(
        f"{len(chosen)} images of {height} x {width} with {len(objects)} objects, put together to {size[0]} x {size[1]}"
    )

    with tempfile.TemporaryDirectory() as folder_of_large:
        path = Path(folder_of_large) / "large.json"
        path.write_text(json.dumps(content))
        Image.fromarray(pixels).save(path.with_suffix(".png"))
        large = GroundTruth(read_coco(path))
        tiles = ["TEST.TILES.SIZE", args.tiles or min(height, width), "TEST.TILES.OVERLAP", args.overlap]
        model, in_tiles = (meinst_d2.load(args.weights, overrides=overrides) for overrides in ([], tiles))
        print(f"{'':16}{'mask AP':>9}{'AP50':>8}{'found':>8}{'seconds':>10}")
        for name in ("image by image", "in tiles", "at once"):
            start, results = time.perf_counter(), []
            if name == "image by image":
                answers = [(model(Path(folder) / images[row]["file_name"], masks="rle"), row) for row in chosen]
            else:
                detector = in_tiles if name == "in tiles" else model
                answers = [(detector(path.with_suffix(".png"), masks="rle"), None)]
            seconds = time.perf_counter() - start
            for answer, row in answers:
                rles = [rle if row is None else placed(rle, row) for rle in answer.pred_masks_rle]
                for score, label, rle in zip(answer.scores.tolist(), answer.pred_classes.tolist(), rles, strict=True):
                    category = truth.dataset.category_ids[label]
                    results.append({"image_id": 1, "category_id": category, "score": score, "segmentation": rle})
            ap = average_precision(large, results, "segm")
            print(f"{name:16}{ap.ap:9.1f}{ap.ap50:8.1f}{len(results):8,}{seconds:10.1f}", flush=True)


if __name__ == "__main__":
    main()
