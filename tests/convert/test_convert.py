"""What is written in each format comes back, what cannot is said, and no file leads out of its folder."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meinst_d2.convert.pixels import VOC_CLASSES, VOC_COLORS, label_rles
from tests.convert.formats import (
    HEIGHT,
    SQUARE,
    TRIANGLE,
    WIDTH,
    classes_of,
    converted,
    drawn,
    flat,
    labelme,
    mask_shape,
    masks_of,
    read,
    region,
    run,
    save_image,
    save_json,
    save_pixels,
    shape,
    via_polygon,
    yolo,
)

PALETTE = [value for color in VOC_COLORS for value in color]


def write_masks(root: Path, names: str = "ab") -> None:
    for name in names:
        save_image(root / name / f"images/{name}.png")
        for number, mask in enumerate(drawn()):
            save_pixels(root / name / f"masks/{number}.png", mask.astype(np.uint8) * 255)


def test_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_masks(tmp_path / "in")
    save_pixels(tmp_path / "in/a/masks/9.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    save_pixels(tmp_path / "in/b/masks/9.png", np.stack([drawn()[0].astype(np.uint8)] * 4, axis=-1))  # in color
    save_image(tmp_path / "in/c/images/c.jpg")
    (tmp_path / "in/c/images/._c.jpg").write_text("a file of macOS")
    content = converted("masks", tmp_path / "in", "--class-name", "nucleus", output=tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a/images/a.png", "b/images/b.png", "c/images/c.jpg"]
    assert content["categories"] == [{"id": 1, "name": "nucleus"}]
    assert np.array_equal(masks_of(content, "a/images/a.png"), drawn())
    assert np.array_equal(masks_of(content, "b/images/b.png"), [*drawn(), drawn()[0]])
    assert masks_of(content, "c/images/c.jpg") == []
    printed = capsys.readouterr().out
    assert "images: 3 (1 without objects), objects: 9, classes: 1" in printed
    assert "left out: objects with an empty mask: 1\n" in printed
    assert f"meinst check {tmp_path}/out/annotations.json {tmp_path}/in\n" in printed
    assert f"--coco-dataset mine_train={tmp_path}/out/annotations.json:{tmp_path}/in\n" in printed


@pytest.mark.parametrize(
    ("kind", "suffix", "values"),
    [
        (np.uint8, ".png", (1, 2, 3, 255)),
        (np.uint16, ".png", (1, 300, 299, 65535)),
        (np.uint16, ".tif", (7, 300, 299, 65535)),
        (np.int32, ".tiff", (70_000, 1, 2, 2**31 - 1)),
        (np.uint32, ".tif", (70_000, 1, 2, 2**31 - 1)),
        (np.float32, ".tif", (70_000, 1, 2, 3)),
    ],
)
def test_label_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type, suffix: str, values: tuple[int, ...]
) -> None:
    labels = np.zeros((HEIGHT, WIDTH), kind)
    for value, mask in zip(values, drawn(), strict=True):
        labels[mask] = value
    save_pixels(tmp_path / f"labels/deep/a.b{suffix}", labels)
    save_pixels(tmp_path / f"labels/empty{suffix}", labels * 0)
    for name in ("deep/a.b", "empty", "not labelled"):
        save_image(tmp_path / f"images/{name}.jpg")
    content = converted("labels", tmp_path / "labels", "--images", tmp_path / "images", output=tmp_path / "out")
    by_value = [mask for _, mask in sorted(zip(values, drawn(), strict=True), key=lambda pair: pair[0])]
    assert np.array_equal(masks_of(content, "deep/a.b.jpg"), by_value)
    assert [image["file_name"] for image in content["images"]] == ["deep/a.b.jpg", "empty.jpg"]
    assert set(classes_of(content)) == {"object"}
    assert "left out: images without annotations, or not in --list: 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("names", ["[cat, dog]", "{1: dog, 0: cat}"])
def test_yolo(tmp_path: Path, names: str) -> None:
    shares = [share for x, y in TRIANGLE for share in (x / WIDTH, y / HEIGHT)]
    outside = [-0.005, 0.1, 0.2, 0.1, 0.2, 1.005]
    lines = [" ".join(map(repr, (number, *values))) for number, values in ((1, shares), (0, outside))]
    root = yolo(tmp_path / "in", {"a": "\n".join(lines) + "\n\n", "b": ""}, names)
    save_image(root / "images/no labels.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    save_image(root / "valid/images_2/c.jpg", exif=turned)
    (root / "valid/labels_2").mkdir()
    (root / "valid/labels_2/c.txt").write_text("0 0 0 1 0 1 1 0 1\n")
    content = converted("yolo", root, output=tmp_path / "out")
    names_of_files = ["images/a.png", "images/b.png", "images/no labels.png", "valid/images_2/c.jpg"]
    assert [image["file_name"] for image in content["images"]] == names_of_files
    assert [category["name"] for category in content["categories"]] == ["cat", "dog"]
    assert classes_of(content) == ["dog", "cat", "cat"]
    triangle, half_outside, whole = content["annotations"]
    assert triangle["segmentation"] == [[x * side for x, side in zip(shares, (WIDTH, HEIGHT) * 3, strict=True)]]
    assert np.allclose(triangle["segmentation"], flat(TRIANGLE), rtol=0, atol=1e-12)
    assert half_outside["bbox"] == [0, 6, 16, 54] and half_outside["segmentation"][0][0] < 0
    assert whole["bbox"] == [0, 0, HEIGHT, WIDTH] and content["images"][3]["width"] == HEIGHT  # turned
    assert len(masks_of(content, "images/a.png")) == 2
    only = converted("yolo", root / "data.yaml", "--images", root / "valid", output=tmp_path / "valid")
    assert [image["file_name"] for image in only["images"]] == ["images_2/c.jpg"]
    assert only["categories"] == content["categories"] and classes_of(only) == ["cat"]


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ring = drawn()[0]
    labelme(
        tmp_path / "labels",
        "a",
        shape(TRIANGLE),
        shape([[70, 25], [50, 5]], "rectangle", "dog"),
        shape([[30, 30], [33, 34]], "circle"),
        shape(TRIANGLE, group_id=4),
        shape([[1, 1], [30, 30]], "line"),
        mask_shape(ring, label="dog"),
        shape(SQUARE, group_id=4),
        shape(SQUARE, label="dog", group_id=4),
        shape([[60, 40], [79, 59]], "rectangle", group_id=5),
        mask_shape(ring, group_id=5),
        image="..\\images\\a.png",
    )
    save_image(tmp_path / "images/a.png")
    labelme(tmp_path / "labels", "b", image="C:\\somewhere else\\b.png")
    save_image(tmp_path / "images/deep/b.png")
    content = converted("labelme", tmp_path / "labels", "--images", tmp_path / "images", output=tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a.png", "deep/b.png"]
    assert classes_of(content) == ["cat", "dog", "cat", "cat", "dog", "dog", "cat"]
    polygon, rectangle, circle, parts, mask, other, mixed = (x["segmentation"] for x in content["annotations"])
    assert polygon == [flat(TRIANGLE)] and parts == [flat(TRIANGLE), flat(SQUARE)] and other == [flat(SQUARE)]
    assert content["annotations"][1]["bbox"] == [50, 5, 20, 20] and len(rectangle[0]) == 8
    assert np.allclose(np.hypot(*(np.reshape(circle[0], (-1, 2)) - 30).T), 5) and len(circle[0]) >= 32
    assert isinstance(mask, dict) and isinstance(mixed, dict)
    masks = masks_of(content, "a.png")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    assert np.array_equal(masks[4], ring)
    assert np.array_equal(masks[6], ring | ((y >= 40) & (y < 59) & (x >= 60) & (x < 79)))
    assert np.array_equal(masks[3], masks[0] | masks[5])
    assert abs(content["annotations"][2]["area"] / (np.pi * 25) - 1) < 0.05
    assert "left out: objects with an empty mask: 1\n" in capsys.readouterr().out


@pytest.mark.parametrize("version", [1, 2])
def test_via(tmp_path: Path, version: int) -> None:
    ellipse = {"name": "ellipse", "cx": 40, "cy": 30, "rx": 30, "ry": 10, "theta": np.pi / 6}
    regions = [
        via_polygon(SQUARE, kind="cat"),
        region({"kind": {"dog": True, "cat": False}}, name="rect", x=10, y=20, width=30, height=5),
        region({"kind": "cat"}, name="circle", cx=40, cy=30, r=8),
        region({"kind": "dog"}, **ellipse),
        region({"kind": "dog"}, name="polyline", all_points_x=[1, 2], all_points_y=[1, 2]),
    ]
    listed = regions if version == 2 else {str(number): region for number, region in enumerate(regions)}
    entries = {"b.png1": {"filename": "b.png", "size": 1, "regions": [] if version == 2 else {}}}
    entries["a.png1"] = {"filename": "a.png", "size": 1, "regions": listed, "file_attributes": {}}
    for name in "ab":
        save_image(tmp_path / f"in/{name}.png")
    path = save_json(tmp_path / "in/via.json", {"_via_img_metadata": entries} if version == 2 else entries)
    content = converted("via", path, output=tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]
    assert classes_of(content) == ["cat", "dog", "cat", "dog"]
    square, rect, circle, turned = content["annotations"]
    assert square["segmentation"] == [flat(SQUARE)] and rect["bbox"] == [10, 20, 30, 5]
    assert np.allclose(circle["bbox"], (32, 22, 16, 16), atol=0.1)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5  # centres of pixels
    along = (x - 40) * np.cos(np.pi / 6) + (y - 30) * np.sin(np.pi / 6)
    across = (y - 30) * np.cos(np.pi / 6) - (x - 40) * np.sin(np.pi / 6)
    inside, found = (along / 30) ** 2 + (across / 10) ** 2 < 1, masks_of(content, "a.png")[3]
    assert (inside & found).sum() / (inside | found).sum() > 0.95
    assert turned["area"] == found.sum()


def test_via_without_one_attribute(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    entry = {"filename": "a.png", "regions": [{**via_polygon(SQUARE), "region_attributes": {}}, via_polygon(TRIANGLE)]}
    path = save_json(tmp_path / "via.json", {"a": entry})
    assert classes_of(converted("via", path, output=tmp_path / "1")) == ["object", "object"]
    entry["regions"] = [via_polygon(SQUARE, kind="cat", sex=1), via_polygon(TRIANGLE, kind="dog", sex=2)]
    path = save_json(tmp_path / "via.json", {"a": entry})
    assert classes_of(converted("via", path, "--class-name", "pet", output=tmp_path / "2")) == ["pet", "pet"]
    assert classes_of(converted("via", path, "--class-attribute", "sex", output=tmp_path / "3")) == ["1", "2"]
    swapped = converted("via", path, "--class-attribute", "kind", "--classes", "dog", "cat", output=tmp_path / "4")
    assert [category["name"] for category in swapped["categories"]] == ["dog", "cat"]
    assert classes_of(swapped) == ["cat", "dog"]


@pytest.mark.parametrize("stored", ["palette", "other palette", "gray", "color"])
def test_voc(tmp_path: Path, stored: str) -> None:
    numbers, classes = (np.zeros((HEIGHT, WIDTH), np.uint8) for _ in range(2))
    for number, (mask, class_number) in enumerate(zip(drawn(), (15, 8, 8, 20), strict=True), 1):
        numbers[mask], classes[mask] = number, class_number
    numbers[0], classes[0] = 255, 255  # void
    for folder, pixels in (("SegmentationObject", numbers), ("SegmentationClass", classes)):
        palette = {"palette": PALETTE, "other palette": PALETTE[::-1]}.get(stored)
        pixels = np.array(VOC_COLORS, np.uint8)[pixels] if stored == "color" else pixels
        save_pixels(tmp_path / f"in/{folder}/a.png", pixels, palette)
        save_pixels(tmp_path / f"in/{folder}/b.png", pixels * 0, palette)
    for name in "abc":
        save_image(tmp_path / f"in/JPEGImages/{name}.jpg")
    content = converted("voc", tmp_path / "in", output=tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a.jpg", "b.jpg"]
    assert [category["name"] for category in content["categories"]] == list(VOC_CLASSES)
    found = {mask.tobytes(): name for mask, name in zip(masks_of(content, "a.jpg"), classes_of(content), strict=True)}
    names = ("person", "cat", "cat", "tvmonitor")
    assert found == {mask.tobytes(): name for mask, name in zip(drawn(), names, strict=True)}
    if stored == "color":
        (tmp_path / "in/labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\nman:192,128,128::\npet:64,0,0::\nscreen:0,64,128::\n"
        )
        content = converted("voc", tmp_path / "in", output=tmp_path / "cvat")
        assert [category["name"] for category in content["categories"]] == ["man", "pet", "screen"]
        assert sorted(classes_of(content)) == ["man", "pet", "pet", "screen"]


def test_a_list_names_the_images(tmp_path: Path) -> None:
    write_masks(tmp_path / "in", "abc")
    (tmp_path / "list.txt").write_text("a\n\n./images/train/c.png\n")
    content = converted("masks", tmp_path / "in", "--list", tmp_path / "list.txt", output=tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a/images/a.png", "c/images/c.png"]


def test_splits_depend_on_names_and_seed_alone(tmp_path: Path) -> None:
    names = [f"plate{number // 4:02}_{number % 4}" for number in range(40)]
    square = shape(SQUARE)
    for folder, order in (("in", names), ("other/in", names[::-1])):
        for name in order:
            labelme(tmp_path / folder, name, square)
    group = ("--group", r"^(plate\d+)_")

    def split(folder: str, *options: object) -> tuple[bytes, bytes]:
        run("labelme", tmp_path / folder, "--val", 0.2, *options, "--output", tmp_path / "out")
        return (tmp_path / "out/train.json").read_bytes(), (tmp_path / "out/val.json").read_bytes()

    def files(content: bytes) -> set[str]:
        return {image["file_name"] for image in json.loads(content)["images"]}

    train, val = split("in")
    assert (train, val) == split("other/in") and (train, val) != split("in", "--seed", 1)
    assert len(files(val)) == 8 and files(train) | files(val) == {f"{name}.png" for name in names}
    train, val = split("in", *group)
    plates = {name[:7] for name in files(val)}
    assert len(files(val)) == 8 and len(plates) == 2 and not plates & {name[:7] for name in files(train)}
    whole = read(tmp_path / "out/train.json"), read(tmp_path / "out/val.json")
    assert whole[0]["categories"] == whole[1]["categories"] and whole[1]["images"][0]["id"] == 1
    assert {annotation["image_id"] for annotation in whole[1]["annotations"]} == set(range(1, 9))
    with pytest.raises(SystemExit, match=r"--group nothing matches no name, such as plate00_0.png"):
        split("in", "--group", "nothing")
    with pytest.raises(SystemExit, match="--val 0.2 of 40 images in 1 groups leaves one side empty"):
        split("in", "--group", "plate")


def test_files_are_found_in_the_folder_of_images_alone(tmp_path: Path) -> None:
    save_image(tmp_path / "secret.png")
    save_image(tmp_path / "in/a.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "..\\secret.png", "\0", "", "..", "~/secret.png"):
        labelme(tmp_path / "in", "x", shape(SQUARE), image=name)
        with pytest.raises(SystemExit, match=re.escape(f"is of the image {name!r}, which is not in {tmp_path}/in")):
            run("labelme", tmp_path / "in", "--output", tmp_path / "out")
        save_json(tmp_path / "via.json", {"a": {"filename": name, "regions": [via_polygon(SQUARE)]}})
        with pytest.raises(SystemExit, match="which is not in"):
            run("via", tmp_path / "via.json", "--images", tmp_path / "in", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_hostile_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = yolo(tmp_path / "yolo", {"a": "0 0 0 1 0 1 1"}, f"!!python/object/apply:os.mkdir [{tmp_path}/marker]")
    with pytest.raises(SystemExit, match=r"data.yaml has no names that can be read: it holds Python objects"):
        run("yolo", root, "--output", tmp_path / "out")
    (tmp_path / "deep.json").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(SystemExit, match="deep.json is not a file of VIA 1 or 2"):
        run("via", tmp_path / "deep.json", "--output", tmp_path / "out")
    labelme(tmp_path / "in", "a", shape([[1e300, 0], [-1e300, 5], [4, 4]]))
    with pytest.raises(SystemExit, match=r"in/a.png has an object with a segmentation of an unknown kind: correct"):
        run("labelme", tmp_path / "in", "--output", tmp_path / "out")
    labelme(tmp_path / "in", "a", shape([[0, 0], [1e100, 0]], "circle"))
    with pytest.raises(SystemExit, match=r"in/a.png has an object with a "):
        run("labelme", tmp_path / "in", "--output", tmp_path / "out")
    write_masks(tmp_path / "bomb", "a")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SystemExit, match=r"a.png cannot be read: Image size \(4800 pixels\) exceeds limit"):
        run("masks", tmp_path / "bomb", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "marker").exists()


def a_yolo(lines: str, names: str = "[cat, dog]") -> Callable[[], tuple[object, ...]]:
    return lambda: ("yolo", yolo(Path("in"), {"a": lines}, names))


def a_labelme(*shapes: dict[str, object], **keys: object) -> Callable[[], tuple[object, ...]]:
    return lambda: ("labelme", labelme(Path("in"), "a", *shapes, **keys))


def a_via(*regions: dict[str, object], options: tuple[str, ...] = ()) -> Callable[[], tuple[object, ...]]:
    def write() -> tuple[object, ...]:
        save_image(Path("in/a.png"))
        return "via", save_json(Path("in/via.json"), {"a": {"filename": "a.png", "regions": regions}}), *options

    return write


def labels(pixels: np.ndarray, *images: str, suffix: str = ".png") -> Callable[[], tuple[object, ...]]:
    def write() -> tuple[object, ...]:
        for name in images or ("a.jpg",):
            save_image(Path("images") / name)
        return "labels", save_pixels(Path(f"in/a{suffix}"), pixels).parent, "--images", "images"

    return write


def pages() -> tuple[object, ...]:
    save_image(Path("images/a.jpg"))
    page = Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8))
    Path("in").mkdir()
    page.save("in/a.tif", save_all=True, append_images=[page])
    return "labels", "in", "--images", "images"


def two_images() -> tuple[object, ...]:
    save_image(Path("in/a/images/a.png"))
    save_image(Path("in/a/images/b.png"))
    return "masks", "in"


def twice() -> tuple[object, ...]:
    labelme(Path("in"), "a", shape(SQUARE))
    labelme(Path("in"), "b", shape(SQUARE), image="a.png")
    return "labelme", "in"


def voc(class_color: int, label_map: str = "") -> Callable[[], tuple[object, ...]]:
    def write() -> tuple[object, ...]:
        save_image(Path("in/JPEGImages/a.jpg"))
        mask = drawn()[0].astype(np.uint8)
        save_pixels(Path("in/SegmentationObject/a.png"), mask, PALETTE)
        save_pixels(Path("in/SegmentationClass/a.png"), mask * class_color, PALETTE)
        if label_map:
            Path("in/labelmap.txt").write_text(label_map)
        return "voc", "in"

    return write


ONES = np.ones((HEIGHT, WIDTH), np.uint8)
ERRORS: dict[str, Callable[[], tuple[object, ...]]] = {
    "line 1 of in/labels/a.txt is a box, and masks need outlines: export polygons": a_yolo("0 .5 .5 .2 .2"),
    "line 2 of in/labels/a.txt has 7 coordinates: write at least three pairs": a_yolo("\n0 0 0 1 0 1 1 0"),
    "line 1 of in/labels/a.txt has the class 2, and the .yaml file names 2": a_yolo("2 0 0 1 0 1 1"),
    "line 1 of in/labels/a.txt has the coordinate 30: divide x by the width": a_yolo("0 0 0 30 0 30 40"),
    "line 1 of in/labels/a.txt has the coordinate nan: divide": a_yolo("0 0 0 1 0 1 nan"),
    "line 1 of in/labels/a.txt is 'cat 0 0': write a class number and a polygon": a_yolo("cat 0 0"),
    "in/data.yaml numbers its names 1, 2: number them from 0": a_yolo("", "{1: cat, 2: dog}"),
    "in/data.yaml has no names that can be read: Expected": a_yolo("", "3"),
    "the class names cat, cat are not all different": a_yolo("0 0 0 1 0 1 1", "[cat, cat]"),
    "none of the 1 images of in has an object: name others": a_yolo(""),
    "no image in in has a label file: put them in place, such as": lambda: ("yolo", no_labels()),
    "nowhere/data.yaml does not exist": lambda: ("yolo", "nowhere/data.yaml"),
    "in/a.json is not a file of labelme: Object missing required field `points` - at `$.shapes[0]`": a_labelme(
        {"label": "cat"}
    ),
    "shape number 0 of in/a.json is of the type 'star': draw it as one of polygon": a_labelme(shape(SQUARE, "star")),
    "shape number 0 of in/a.json is a circle of 4 points instead of two": a_labelme(shape(SQUARE, "circle")),
    "shape number 0 of in/a.json has a mask that is not a PNG in base64": a_labelme(
        shape(SQUARE[:2], "mask", mask="?")
    ),
    "shape number 0 of in/a.json has a mask at (70, 59) that does not fit": a_labelme(
        {**mask_shape(drawn()[1]), "points": [[70, 59], [90, 80]]}
    ),
    "in/a.json is of an image of 80 x 60 pixels, and in/a.png has 60 x 80": a_labelme(imageHeight=80, imageWidth=60),
    "there are objects of the class cat, not among dog": lambda: (*a_labelme(shape(SQUARE))(), "--classes", "dog"),
    "the image in/a.png is annotated twice: remove one": twice,
    "in/annotations.json may be one of the files that are read": lambda: overwriting(),
    "region number 0 of 'a.png' in in/via.json is not a whole polygon": a_via(region({}, name="rect", x=1, y=2)),
    "in/via.json has regions with the attributes kind, sex: name one": a_via(via_polygon(SQUARE, sex="f", kind="cat")),
    "in/via.json has no region with the attribute x: name one of kind": a_via(
        via_polygon(SQUARE, kind="cat"), options=("--class-attribute", "x")
    ),
    "region number 1 of 'a.png' in in/via.json has '' for the attribute kind: give it one class": a_via(
        via_polygon(SQUARE, kind="cat"), via_polygon(SQUARE, kind="")
    ),
    "in/a.png has 3 channels: save label images with one whole number": labels(np.dstack([ONES] * 3)),
    "in/a.tif has values that are not whole numbers": labels(ONES * np.float32(0.5), suffix=".tif"),
    "in/a.png has 30 x 80 pixels (height x width), and its image 60 x 80": labels(ONES[:30]),
    "in/a.png is of an image a.*, which is not in images: name its folder": labels(ONES, "b.jpg"),
    "in/a.png is of an image a.*, and images holds images/a.jpg, images/a.png: keep one": labels(
        ONES, "a.jpg", "a.png"
    ),
    "in/a.tif has 2 pages: save each as a file of its own": pages,
    "labels needs --images DIR": lambda: ("labels", "in"),
    "in/a/images holds 2 images: keep the one": two_images,
    "the folder of images nowhere does not exist: name it": lambda: ("labels", "in", "--images", "nowhere"),
    "in/SegmentationClass/a.png has an object of the color (64, 64, 0), no class of VOC's palette": voc(24),
    "in/SegmentationClass/a.png has an object of the color (128, 0, 0), no class of in/labelmap.txt": voc(
        1, "cat:1,2,3::\n"
    ),
    "line 1 of in/labelmap.txt is 'cat:red::': write name:red,green,blue::": voc(1, "cat:red::\n"),
}


def no_labels() -> Path:
    root = yolo(Path("in"), {"a": ""})
    (root / "labels/a.txt").unlink()
    return root


def overwriting() -> tuple[object, ...]:
    labelme(Path("in"), "annotations", shape(SQUARE))
    return "labelme", "in", "--output", "in"


@pytest.mark.parametrize("sentence", ERRORS)
def test_what_is_wrong_is_said_and_nothing_written(
    sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ERRORS[sentence]()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as stop:
        run(*args, *([] if "--output" in args else ["--output", "out"]))
    assert str(stop.value).startswith(f"meinst convert: {sentence}")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["coco", "in"], "invalid choice: 'coco'"),
        (["masks", "in", "--images", "x"], "--images is not for masks, only for labels, yolo"),
        (["yolo", "in", "--class-name", "x"], "--class-name is not for yolo, only for masks, labels, via"),
        (["via", "in", "--class-name", "x", "--class-attribute", "y"], "give one of them"),
        (["masks", "in", "--val", "15"], "--val 15 is not a share between 0 and 1"),
        (["masks", "in", "--group", "x"], "give --val too"),
        (["masks", "in", "--val", ".1", "--group", "("], "--group ( is not a regular expression"),
    ],
)
def test_usage(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*args, "--output", "out")
    assert stop.value.code == 2 and message in capsys.readouterr().err


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([np.bool_, np.uint8, np.int32]))
def test_label_images_are_encoded_like_their_masks(height: int, width: int, seed: int, kind: type) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (height, width)).astype(kind)
    rles = label_rles(labels)
    assert list(rles) == [value for value in np.unique(labels) if value]
    for value, rle in rles.items():
        assert rle == mask_util.encode(np.asfortranarray(labels == value, np.uint8))
