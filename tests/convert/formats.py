"""Objects to write in every format, and the command run on what was written."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from meinst_d2.commands import convert
from meinst_d2.data.coco import read_coco

HEIGHT, WIDTH = 60, 80
TRIANGLE = [[10.5, 10.25], [40.0, 12.0], [20.0, 50.125]]
SQUARE = [[50.0, 5.0], [70.0, 5.0], [70.0, 25.0], [50.0, 25.0]]
Masks = dict[str, np.ndarray]


def drawn() -> list[np.ndarray]:
    """Masks that do not overlap: one with a hole, one in two parts, one at the corner of the image, one pixel."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    radius = np.hypot(y - 20, x - 20)
    parts = ((y >= 45) & (y < 55) & (x >= 10) & (x < 30)) | ((y >= 45) & (y < 50) & (x >= 40) & (x < 61))
    return [(radius < 15) & (radius > 6), parts, (y > 50) & (x > 70), (y == 30) & (x == 60)]


def save_image(path: Path, size: tuple[int, int] = (HEIGHT, WIDTH), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path, **options)
    return path


def save_pixels(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(palette)
    image.save(path)
    return path


def save_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def labelme(folder: Path, name: str, *shapes: dict[str, Any], image: str | None = None, **keys: Any) -> Path:
    """A labelme file, of an image beside it unless another is named."""
    if image is None:
        save_image(folder / f"{name}.png")
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    content = {
        "imagePath": f"{name}.png" if image is None else image,
        "imageData": None,
        "shapes": list(shapes),
        **size,
        **keys,
    }
    return save_json(folder / f"{name}.json", content)


def shape(points: list[list[float]], kind: str = "polygon", label: str = "cat", **keys: Any) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **keys}


def mask_shape(mask: np.ndarray, **keys: Any) -> dict[str, Any]:
    """A mask as labelme writes it: the window around it as a PNG."""
    rows, columns = np.nonzero(mask)
    x, y, right, bottom = (int(at) for at in (columns.min(), rows.min(), columns.max(), rows.max()))
    buffer = io.BytesIO()
    Image.fromarray(mask[y : bottom + 1, x : right + 1]).save(buffer, "PNG")
    mask_text = base64.b64encode(buffer.getvalue()).decode()
    return shape([[x, y], [right, bottom]], "mask", mask=mask_text, **keys)


def via_polygon(points: list[list[float]], **attributes: Any) -> dict[str, Any]:
    xs, ys = zip(*points, strict=True)
    return region(attributes, name="polygon", all_points_x=xs, all_points_y=ys)


def region(attributes: dict[str, Any], **shape: Any) -> dict[str, Any]:
    return {"shape_attributes": shape, "region_attributes": attributes}


def yolo(folder: Path, labels: dict[str, str], names: str = "[cat, dog]", suffix: str = ".png") -> Path:
    (folder / "labels").mkdir(parents=True)
    (folder / "data.yaml").write_text(f"train: ../train/images\nnc: 2\nnames: {names}\n")
    for name, lines in labels.items():
        save_image(folder / f"images/{name}{suffix}")
        (folder / f"labels/{name}.txt").write_text(lines)
    return folder


def run(*args: object) -> None:
    convert.main([str(value) for value in args])


def read(path: Path) -> dict[str, Any]:
    """A written file, which must be one that this project reads."""
    read_coco(path)
    return json.loads(path.read_text())


def converted(*args: object, output: Path) -> dict[str, Any]:
    run(*args, "--output", output)
    return read(output / "annotations.json")


def masks_of(content: dict[str, Any], name: str) -> list[np.ndarray]:
    """The masks of an image in the order of the file, whose boxes and areas must be theirs."""
    (image,) = (image for image in content["images"] if image["file_name"] == name)
    masks = []
    for annotation in content["annotations"]:
        if annotation["image_id"] == image["id"]:
            segmentation = annotation["segmentation"]
            if isinstance(segmentation, list):
                points = np.concatenate(segmentation).reshape(-1, 2).clip(0, (image["width"], image["height"]))
                box = [*points.min(axis=0), *np.ptp(points, axis=0)]
                rle = mask_util.merge(mask_util.frPyObjects(segmentation, image["height"], image["width"]))
            else:
                assert segmentation["size"] == [image["height"], image["width"]]
                rle, box = segmentation, mask_util.toBbox(segmentation)
            assert np.allclose(annotation["bbox"], box) and annotation["area"] == mask_util.area(rle)
            assert annotation["iscrowd"] == 0
            masks.append(mask_util.decode(rle).astype(bool))
    return masks


def classes_of(content: dict[str, Any]) -> list[str]:
    """The class of every annotation."""
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [names[annotation["category_id"]] for annotation in content["annotations"]]


def flat(points: list[list[float]]) -> list[float]:
    return [value for point in points for value in point]
