"""Reader of YOLO's segmentation labels: text files beside images, and a .yaml file with the class names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from meinst_d2.config_file import plain_yaml
from meinst_d2.convert import AnnotatedImage, Annotations, Source
from meinst_d2.convert.image_folder import ImageFolder, in_threads, size_of
from meinst_d2.data.coco import listed

OVERSHOOT = 0.01
"""Of a coordinate beyond its image, in shares of the image's side: labels are rounded."""


def read_yolo(source: Source) -> Annotations:
    """``data.yaml``, or a folder with it: every image below the folder; one without a label file has no objects."""
    path = source.path / "data.yaml" if source.path.is_dir() else source.path
    names = read_names(path)
    folder = ImageFolder(source.images or source.folder)
    labels = {image: next((x for x in label_files(image) if x.is_file()), None) for image in folder.paths}
    if not any(labels.values()):
        example = next(label_files(folder.paths[0]))
        raise FileNotFoundError(f"no image in {folder.root} has a label file: put them in place, such as {example}")

    def read(image: Path) -> AnnotatedImage:
        size, label = size_of(image), labels[image]
        lines = label.read_text("utf-8", "replace").splitlines() if label else []
        found = [parse(line, size, names, f"line {n} of {label}") for n, line in enumerate(lines, 1) if line.strip()]
        return AnnotatedImage(image, size, [(name, [polygon]) for name, polygon in found])

    return Annotations(folder.root, in_threads(read, folder.paths), names, len(folder.paths))


def read_names(path: Path) -> list[str]:
    """The class names of a .yaml file, by class number."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: name the .yaml file that lists the class names, or its folder")
    try:
        content = msgspec.convert(plain_yaml(path.read_text("utf-8", "replace")), dict[str, Any])
        names = msgspec.convert(content.get("names"), list[str | int] | dict[int, str | int])
    except ValueError as error:
        raise ValueError(f"{path} has no names that can be read: {error}; list them under 'names'") from error
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"{path} numbers its names {listed(sorted(names))}: number them from 0, without gaps")
        names = [names[number] for number in range(len(names))]
    return [str(name) for name in names]


def label_files(image: Path) -> Iterator[Path]:
    """Where the labels of an image may be: in labels/ for images/, in labels_2/ for images_2/, or beside it."""
    for path in (image, Path(os.path.abspath(image))):  # which names the folders above, too
        parts = path.with_suffix(".txt").parts
        for at in reversed(range(len(parts) - 1)):
            if parts[at].startswith("images"):
                yield Path(*parts[:at], parts[at].replace("images", "labels", 1), *parts[at + 1 :])
        yield Path(*parts)


def parse(line: str, size: tuple[int, int], names: Sequence[str], where: str) -> tuple[str, list[float]]:
    """The class and the polygon in pixels of a line; ``where`` is the line, for errors."""
    try:
        number, *shares = map(float, line.split())
    except ValueError as error:
        raise ValueError(f"{where} is {line[:40]!r}: write a class number and a polygon, x y x y ...") from error
    if len(shares) == 4:
        raise ValueError(f"{where} is a box, and masks need outlines: export polygons, or remove the line")
    if len(shares) < 6 or len(shares) % 2:
        raise ValueError(f"{where} has {len(shares)} coordinates: write at least three pairs of x and y")
    if number not in range(len(names)):
        raise ValueError(f"{where} has the class {number:g}, and the .yaml file names {len(names)}: add its name there")
    if bad := [share for share in shares if not -OVERSHOOT <= share <= 1 + OVERSHOOT]:
        raise ValueError(
            f"{where} has the coordinate {bad[0]:g}: divide x by the width and y by the height of the image"
        )
    height, width = size
    return names[int(number)], [share * (height if at % 2 else width) for at, share in enumerate(shares)]
