#!/usr/bin/env python
"""Write the inputs that the fuzzers start from; what they found since lies beside them."""

from __future__ import annotations

import io
import json
import math
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from safetensors.torch import save

from fuzz.harness import CORPUS

SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]


def coco(**changes: Any) -> bytes:
    annotation = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4], "iscrowd": 0, "area": 16}
    content = {
        "images": [{"id": 7, "height": 8, "width": 9, "file_name": "a.jpg"}],
        "annotations": [{**annotation, "segmentation": [SQUARE]} | changes],
        "categories": [{"id": 3, "name": "thing"}],
    }
    return json.dumps(content).encode()


def json_seeds() -> dict[str, bytes]:
    return {
        "polygon": coco(),
        "list": coco(segmentation={"size": [8, 9], "counts": [9, 4, 59]}),
        "text": coco(segmentation={"size": [8, 9], "counts": "94k1"}),
        "crowd": coco(iscrowd=1),
        "infinite": coco(bbox=[0, 0, 1e999, 1]),
        "far": coco(segmentation=[[0, 0, 1e300, 0, 1, 1]]),
        "points": coco(segmentation=[[[1, 1], [5, 1], [5, 5]]]),
        "flat": coco(segmentation=SQUARE),
        "texts": coco(segmentation=["1", "2"], bbox=["1", "1", "4", "4"], area="16", iscrowd="no"),
        "nothing": coco(segmentation=None, bbox=None, area=None, iscrowd=None, image_id=None, category_id=None),
        "lists": coco(segmentation={"size": [[8], 9], "counts": [[72]]}, image_id=[7], category_id=[3]),
        "truths": coco(segmentation={"size": [8, 9], "counts": [True, 71]}, bbox=[True, 0, 1, 1], area=True),
        "not_a_number": coco(segmentation=[[math.nan] * 6], bbox=[math.nan, 0, 1, 1], image_id=math.nan),
        "long": coco(segmentation={"size": [8, 9], "counts": [2**63, 2**63, 10**30]}, area=10**400),
        "other_images": json.dumps({"images": [{"id": "7", "height": "8", "width": 9.5}], "annotations": []}).encode(),
        "other_categories": b'{"categories": [{"id": "a"}, {"id": 1}, {}], "images": [], "annotations": [{}]}',
        "other_parts": b'{"info": {"a": [1, {}]}, "licenses": [1], "images": [], "annotations": []}\n',
    }


def rle_seeds() -> dict[str, bytes]:
    head = bytes((8, 0, 9, 0, 1, 1, 5, 5))
    return {
        "text": head + b"\x00" + b"94k1",
        "list": head + b"\x01" + b"[9, 4, 59]",
        "runs": head + b"\x02" + bytes((9, 0, 4, 0, 20, 0, 10, 0)),
        "compressed_runs": head + b"\x03" + bytes((9, 0, 4, 0, 20, 0, 10, 0)),
        "polygons": head + b"\x01" + json.dumps([SQUARE, [0, 0, 1e9, 0, 1, 1]]).encode(),
        "overflow": head + b"\x01" + json.dumps([2**62, 2**62, 2**62, 2**62 + 72]).encode(),
    }


def npz_seeds() -> dict[str, bytes]:
    shapes = {"mean_c": (1, 4), "explained_variance_c": (1, 1), "ratio_c": (1, 1)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    arrays["components_c"] = np.array([[[1, 0, 0, 0]]], np.float32)
    found = {}
    for name, write in (("stored", np.savez), ("deflated", np.savez_compressed)):
        file = io.BytesIO()
        write(file, **arrays, provenance=np.array("{}"))
        found[name] = b"\x00" + file.getvalue()
    with zipfile.ZipFile(io.BytesIO(found["stored"][1:])) as archive:
        found["array"] = b"\x01" + archive.read("components_c.npy")
    objects = io.BytesIO()
    np.save(objects, np.array([[[None]]], object), allow_pickle=True)
    return found | {"objects": b"\x01" + objects.getvalue()}


def checkpoint_seeds() -> dict[str, bytes]:
    tensors = {"a.weight": torch.arange(4.0).reshape(2, 2), "b": torch.tensor([1, 2])}
    content = {"model": tensors, "meinst": {"class_names": ["x"]}, "iteration": 3}
    found = {}
    for name, zipped in (("zip", True), ("legacy", False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        found[name] = b"\x00" + file.getvalue()
    file = io.BytesIO()
    torch.save({"a": torch.arange(4.0)}, file)
    with zipfile.ZipFile(file) as archive:
        found["pickle_of_zip"] = b"\x03" + archive.read("archive/data.pkl")
    arrays = {"model": {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(3)}, "__author__": "me"}
    found["average"] = b"\x01" + pickle.dumps({"model": {"a": np.zeros(1)}, "ema": {"model": {"a": np.ones(1)}}}, 4)
    found |= {f"pkl_{protocol}": b"\x01" + pickle.dumps(arrays, protocol) for protocol in (2, 5)}
    return found | {"safetensors": b"\x02" + save(tensors, {"meinst": "{}"})}


MAKERS = {"json": json_seeds, "rle": rle_seeds, "npz": npz_seeds, "checkpoint": checkpoint_seeds}


def main() -> None:
    for folder, make in MAKERS.items():
        (CORPUS / folder).mkdir(parents=True, exist_ok=True)
        for name, content in make().items():
            (CORPUS / folder / f"seed_{name}").write_bytes(content)


if __name__ == "__main__":
    main()
