"""Write COCO instances files, which Detectron2 reads, from annotations in another format."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meinst_d2.commands import make_parser, reporting

if TYPE_CHECKING:
    from meinst_d2.convert import Annotations, Source

FORMATS = {
    "masks": "NAME/images/NAME.png and one PNG per object in NAME/masks: every value but 0",
    "labels": "label images (PNG, TIFF; 8, 16, 32 bits), every value but 0 an object; no overlaps",
    "yolo": "data.yaml, images/ and labels/ with polygons; no holes, one part per object",
    "labelme": "JSON files; shapes of one group are one object; holes only in mask shapes",
    "via": "VGG Image Annotator 1 and 2, a project or exported JSON; no holes, one part per object",
    "voc": "SegmentationObject, SegmentationClass, JPEGImages, and labelmap.txt if it is there; no overlaps",
}
OF_JSON = ("labelme", "via")
"""Whose files an output may be taken for."""
OPTIONS = {
    "images": ("labels", "yolo", "labelme", "via", "voc"),
    "class_name": ("masks", "labels", "via"),
    "class_attribute": ("via",),
}
"""Those that only some formats have."""
FORMAT_TABLE = "\n".join(f"  {name:8} {what}" for name, what in FORMATS.items())
EPILOG = f"""formats:
{FORMAT_TABLE}

Images stay where they are. Polygons are written as they are, masks of pixels as RLE; circles and ellipses become
polygons. Images without objects are kept. Objects with an empty mask, and points and lines, are left out and counted.

examples:
  meinst convert masks stage1_train --class-name nucleus --val 0.15 --output mine
  meinst convert labels labels --images images --class-name cell --val 0.15 --group '^plate\\d+' --output mine
  meinst convert yolo data.yaml --images train/images --output mine/train
  meinst convert labelme annotations --images images --val 0.15 --output mine
  meinst convert via via_region_data.json --class-attribute species --output mine
  meinst convert voc VOC2012 --list VOC2012/ImageSets/Segmentation/train.txt --output mine/train
"""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("convert", __doc__, EPILOG)
    add = parser.add_argument
    add("format", metavar="FORMAT", choices=FORMATS, help=", ".join(FORMATS))
    add("input", metavar="INPUT", type=Path, help="folder of the annotations, or their file")
    output = "folder for annotations.json, or for train.json and val.json"
    add("--output", required=True, type=Path, metavar="DIR", help=output)
    images = "folder of the images, from which file_name counts (default: the format's own, or INPUT)"
    add("--images", type=Path, metavar="DIR", help=images)
    add("--list", type=Path, metavar="FILE", help="only the images that this file names, one a line")
    classes = "the classes in the order of their ids (default: those of the format, or of the objects, sorted)"
    add("--classes", nargs="+", metavar="NAME", help=classes)
    add("--class-name", metavar="NAME", help="class of every object, where the format has none (default object)")
    add("--class-attribute", metavar="NAME", help="of VIA's regions, their class (default: the only one that there is)")
    add("--val", type=float, metavar="SHARE", help="of the images, for validation (default: one file, not split)")
    add("--seed", type=int, default=0, help="another seed, another split (default 0)")
    group = "images whose names this matches alike, in its first group if it has one, stay on one side of the split"
    add("--group", metavar="REGEX", help=group)
    args = parser.parse_args(argv)
    for name, formats in OPTIONS.items():
        if getattr(args, name) is not None and args.format not in formats:
            parser.error(f"--{name.replace('_', '-')} is not for {args.format}, only for {', '.join(formats)}")
    if args.class_name is not None and args.class_attribute is not None:
        parser.error("--class-name gives all objects one class, --class-attribute each its own: give one of them")
    if args.val is not None and not 0 < args.val < 1:
        parser.error(f"--val {args.val:g} is not a share between 0 and 1, such as 0.15")
    if args.group is not None:
        if args.val is None:
            parser.error("--group keeps images together in a split: give --val too")
        try:
            args.group = re.compile(args.group)
        except re.error as error:
            parser.error(f"--group {args.group} is not a regular expression: {error}")
    return args


def read(format_name: str, source: Source) -> Annotations:
    """What the reader of a format finds."""
    from meinst_d2.convert.labelme import read_labelme
    from meinst_d2.convert.pixels import read_labels, read_masks, read_voc
    from meinst_d2.convert.via import read_via
    from meinst_d2.convert.yolo import read_yolo

    readers = {"masks": read_masks, "labels": read_labels, "voc": read_voc}
    readers |= {"yolo": read_yolo, "labelme": read_labelme, "via": read_via}
    return readers[format_name](source)


def read_list(path: Path | None) -> set[str] | None:
    """The file names of a list, without the folders that it gives."""
    if path is None:
        return None
    return {line.strip().rpartition("/")[2] for line in path.read_text().splitlines() if line.strip()}


def outputs(args: argparse.Namespace) -> list[Path]:
    """The files that will be written, which can be, and are none of those that are read."""
    from meinst_d2.files import require_writable

    names = ["annotations.json"] if args.val is None else ["train.json", "val.json"]
    paths = [args.output / name for name in names]
    for path in paths:
        require_writable(path)
        read = args.input.resolve() in (path.resolve(), *path.resolve().parents)
        if read and path.exists() and args.format in OF_JSON:
            raise ValueError(f"{path} may be one of the files that are read: name another --output, or remove it")
    return paths


@reporting("convert")
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)

    # Imported here so that --help answers at once.
    from meinst_d2.convert import Source
    from meinst_d2.convert.write import as_coco, choose_val, class_names_of, collect, write_files

    paths = outputs(args)
    wanted = read_list(args.list)
    annotations = read(args.format, Source(args.input, args.images, args.class_name, args.class_attribute))
    entries, empty = collect(annotations, wanted)
    names = class_names_of(entries, args.classes or annotations.class_names)
    sides = [entries]
    if args.val is not None:
        val = choose_val([entry["file_name"] for entry in entries], args.val, args.seed, args.group)
        sides = [[entry for entry in entries if (entry["file_name"] in val) == is_val] for is_val in (False, True)]
    write_files({path: as_coco(side, names) for path, side in zip(paths, sides, strict=True)})
    for path, side in zip(paths, sides, strict=True):
        counts = [len(entry["annotations"]) for entry in side]
        images = f"images: {len(side):,} ({counts.count(0):,} without objects)"
        print(f"wrote {path}; {images}, objects: {sum(counts):,}, classes: {len(names)}")
    if empty:
        print(f"left out: objects with an empty mask: {empty:,}")
    if annotations.num_files and annotations.num_files > len(entries):
        print(f"left out: images without annotations, or not in --list: {annotations.num_files - len(entries):,}")
    root = str(annotations.root)
    checks = [shlex.join(["meinst", "check", str(path), root]) for path in paths]
    named = zip(("mine_train", "mine_val"), paths, strict=False)
    datasets = [word for name, path in named for word in ("--coco-dataset", f"{name}={path}:{root}")]
    train = shlex.join(["python", "train_net.py", "--config-file", "configs/fine_tune.yaml", *datasets])
    print("next:", *checks, train, sep="\n  ")
