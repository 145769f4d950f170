"""The models in zoo/: they are found by name, need nothing else, and find what they are for."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageFilter
from pycocotools import mask as coco_mask

import meinst_d2
from meinst_d2.data.coco import read_coco
from meinst_d2.evaluation.average_precision import GroundTruth, average_precision
from meinst_d2.model_zoo import TrainedModel, zoo

MB = 10**6


@pytest.fixture(scope="module")
def discs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO file and images of bright discs on dark ground, as nuclei are in fluorescence."""
    folder, random = tmp_path_factory.mktemp("discs"), np.random.default_rng(0)
    images, annotations = [], []
    rows, columns = np.mgrid[:256, :256] + 0.5
    for image_id in range(1, 5):
        picture = np.full((256, 256), 12.0)
        for center in np.mgrid[24:256:52, 24:256:52].reshape(2, -1).T + random.uniform(-6, 6, (25, 2)):
            inside = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 < random.uniform(6, 18) ** 2
            picture[inside] = random.uniform(60, 200)
            rle = coco_mask.encode(np.asfortranarray(inside, np.uint8))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            about = {"bbox": coco_mask.toBbox(rle).tolist(), "area": int(inside.sum()), "iscrowd": 0}
            found = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1}
            annotations.append({**found, **about, "segmentation": segmentation})
        picture += random.normal(0, 3, picture.shape)
        blurred = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))
        blurred.convert("RGB").save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 256, "width": 256})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nucleus"}]}
    (folder / "discs.json").write_text(json.dumps(content))
    return folder


def mask_ap(model: TrainedModel, folder: Path) -> float:
    truth, results = GroundTruth(read_coco(folder / "discs.json")), []
    for image in truth.dataset.images:
        found = model(folder / image["file_name"], masks="rle")
        for score, rle in zip(found.scores.tolist(), found.pred_masks_rle, strict=True):
            results.append({"image_id": image["id"], "category_id": 1, "score": score, "segmentation": rle})
    return average_precision(truth, results, "segm").ap


@pytest.mark.parametrize("name", zoo.model_names())
def test_a_file_is_small_and_in_half_precision(name: str) -> None:
    file = Path(zoo.model_names()[name])
    assert file.stat().st_size <= 12 * MB
    assert {tensor.dtype for tensor in safetensors.torch.load_file(file).values()} <= {torch.float16, torch.int64}


def test_nuclei_are_found_and_half_precision_costs_nothing(discs: Path) -> None:
    model = meinst_d2.load("nuclei")
    assert model.class_names == ["nucleus"]
    ap = mask_ap(model, discs)
    assert ap > 50
    # Weights in float32 that half precision rounds to those of the file: they may be off by 2 ** -12 of themselves.
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.model.parameters():
            rounded = weight.half()
            weight *= 1 + 2**-12 * (1.98 * torch.rand_like(weight) - 0.99)
            assert weight.half()[rounded.abs() > 1e-4].equal(rounded[rounded.abs() > 1e-4])
    assert mask_ap(model, discs) == pytest.approx(ap, abs=0.1)
