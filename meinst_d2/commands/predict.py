"""Draw what a trained model finds in images, in videos and before a camera.

The flags are those of Detectron2's demo.py, and more. No window is opened: drawings are files.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from meinst_d2.commands import make_parser, reporting, require_positive

if TYPE_CHECKING:
    import numpy as np

    from meinst_d2.visualization.sources import Source

EPILOG = """examples:
  meinst predict --weights output/demo/model_final.pth --input output/demo/shapes/val
  meinst predict --weights shapes-1a2b3c4d.pth --input 'street/*.jpg' clip.mp4 --output output/street
  meinst predict --config-file MEInst_R_50_3x --weights MEInst_R_50_3x.pth --input street.jpg --output found.png
  meinst predict --config-file output/imported/config.yaml --weights output/imported/model.pth \\
      --input photos --save-json found.json --confidence-threshold 0.05

The model needs --config-file (a file, or a name in configs/) and --weights. Weights alone do where they say how they
are built: files of meinst publish and meinst import, and checkpoints beside their run's config.yaml. A config.yaml
alone does where model_final.pth is beside it. Number of classes, class names and mask components are those of the
weights.

--save-json writes COCO results with masks as RLE: image_id counts images and frames from 1, category_id counts the
model's classes from 0; file_name, category_name and (in videos) frame say the same in words. It has what is drawn:
lower --confidence-threshold to evaluate.

A file that cannot be read is reported and passed over. The exit status is 1 if none could be read.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("predict", __doc__, EPILOG)
    parser.add_argument("--config-file", metavar="FILE_OR_NAME", help="of the model")
    parser.add_argument("--weights", metavar="FILE_OR_URL", help="default: MODEL.WEIGHTS of --opts, or see below")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--input", nargs="+", metavar="PATH", help="images, videos, folders, globs in quotation marks")
    inputs.add_argument("--video-input", metavar="FILE", help="a video, whatever its name")
    what = "the first camera, until Ctrl-C; drawn to webcam.mp4 in --output"
    inputs.add_argument("--webcam", action="store_true", help=what)
    what = "a folder, or for one input a file (default output/found; with --save-json, by default nothing is drawn)"
    parser.add_argument("--output", type=Path, metavar="PATH", help=what)
    parser.add_argument("--save-json", type=Path, metavar="FILE", help="write the detections as COCO results")
    what = "least score (default 0.5)"
    parser.add_argument("--confidence-threshold", type=float, default=0.5, metavar="SCORE", help=what)
    what = "look at overlapping tiles of this many pixels a side, for large images"
    parser.add_argument("--tiles", type=int, metavar="PIXELS", help=what)
    what = "least share of a tile's side that neighbours have in common (default 0.2)"
    parser.add_argument("--overlap", type=float, metavar="SHARE", help=what)
    what = "a .ttf or .otf file that has the class names' script"
    parser.add_argument("--font", type=Path, metavar="FILE", help=what)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: MODEL.DEVICE, or cpu where there is no GPU)")
    what = "config overrides, at the end"
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help=what)
    args = parser.parse_args(argv)
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold {args.confidence_threshold:g} is not a score: choose 0 to 1")
    require_positive(parser, args, "tiles")
    if args.overlap is not None and args.tiles is None:
        parser.error("--overlap is that of --tiles: give both")
    for key, value in (("SIZE", args.tiles), ("OVERLAP", args.overlap)):
        args.opts += [] if value is None else [f"TEST.TILES.{key}", str(value)]
    if args.output is None and args.save_json is None:
        args.output = Path("output/found")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with reporting("predict"):
        sys.exit(run(args))


def run(args: argparse.Namespace) -> int:
    """Look at every source, with progress on the console; the exit status."""
    # Imported here so that --help answers at once.
    from detectron2.data.catalog import Metadata
    from tqdm import tqdm

    from meinst_d2.evaluation.results import ResultFile
    from meinst_d2.files import require_writable
    from meinst_d2.model_zoo import UnusableImage, load_trained
    from meinst_d2.visualization.drawing import MaskVideoVisualizer, MaskVisualizer, use_font
    from meinst_d2.visualization.sources import Frames, Source, find_sources, plan_outputs

    if args.webcam:
        sources = [Source(Path("webcam"), True, camera=0)]
    else:
        sources = find_sources(args.input or [args.video_input])
    if args.video_input:
        sources = [dataclasses.replace(source, is_video=True) for source in sources]
    targets = None if args.output is None else plan_outputs(sources, args.output)
    for path in (*(targets or [])[:1], *([args.save_json] if args.save_json else [])):
        require_writable(path)
    if args.font:
        use_font(args.font)
    trained = load_trained(args.config_file, args.weights, args.opts, args.device)
    if args.save_json is not None:
        require_own_file(args.save_json, sources, targets or [], [trained.weights, args.config_file or trained.weights])
    print(f"{trained.weights}: {len(trained.class_names)} class{'es' * (len(trained.class_names) != 1)}")
    for note in trained.notes:
        print(f"note: {note}")

    results = ResultFile(args.save_json, trained.class_names) if args.save_json else None
    metadata = Metadata(name="demo", thing_classes=trained.class_names)
    num_images, num_objects = 0, 0
    written: list[Path] = []
    num_bad = 0

    def report(problem: str) -> None:
        nonlocal num_bad
        num_bad += 1
        tqdm.write(f"meinst predict: {problem}", file=sys.stderr)

    for source, target in zip(tqdm(sources, desc="inputs", unit="file"), targets or [None] * len(sources), strict=True):
        try:
            frames = Frames(source)
        except OSError as error:
            report(str(error))
            continue
        of_video = MaskVideoVisualizer(metadata)  # an object keeps its colour from frame to frame
        bar = tqdm(
            frames, source.path.name, frames.num_frames or None, False, unit="frame", disable=not source.is_video
        )
        try:
            with writing(target, frames.frames_per_second if source.is_video else None) as write:
                for number, frame in enumerate(bar):
                    found = trained(frame, min_score=args.confidence_threshold, masks="rle")
                    num_images, num_objects = num_images + 1, num_objects + len(found)
                    if results is not None:
                        results.add(found, source.path, number if source.is_video else None)
                    if target is not None and source.is_video:
                        write(of_video.draw_instance_predictions(frame, found).get_image())
                    elif target is not None:
                        write(MaskVisualizer(frame, metadata).draw_instance_predictions(found).get_image())
        except UnusableImage as error:
            report(f"{source.path}: {error}")
            continue
        if target is not None:
            written.append(target)
        if frames.problem:
            report(f"{source.path}: {frames.problem}")

    if results is not None and num_images:
        results.write()
        print(f"wrote {args.save_json}")
    if written:
        print(f"wrote {written[0] if len(written) == 1 else args.output} ({len(written)} of {len(sources)} inputs)")
    print(f"{num_objects} object{'s' * (num_objects != 1)} in {num_images} image{'s' * (num_images != 1)}")
    if num_bad:
        print(f"{num_bad} of {len(sources)} inputs could not be read to the end, see above", file=sys.stderr)
    return 0 if num_images else 1


def require_own_file(path: Path, sources: Sequence[Source], pictures: Sequence[Path], model: Sequence[str]) -> None:
    """Raise a ValueError if a result file would replace something that the command reads or draws.

    Args:
        path: where results will be written.
        sources: what is looked at.
        pictures: what is drawn.
        model: files of the model; URLs do not matter.
    """
    if path.is_dir():
        raise ValueError(f"--save-json {path} is a folder: name a file in it")
    inputs = [source.path for source in sources if source.camera is None]
    for what, others in (("the input", inputs), ("the picture", pictures), ("the model", model)):
        if os.path.realpath(path) in {os.path.realpath(other) for other in others}:
            raise ValueError(f"--save-json {path} would replace {what}: name another file")


@contextmanager
def writing(target: Path | None, frames_per_second: float | None) -> Iterator[Callable[[np.ndarray], None]]:
    """What writes a drawing (H, W, 3) uint8 RGB to a file, which is there once the block has ended well.

    Args:
        target: the picture or video; None where nothing will be written.
        frames_per_second: of a video; None for a picture.
    """
    from PIL import Image

    from meinst_d2.files import atomic_path
    from meinst_d2.visualization.sources import VideoWriter

    if target is None:
        yield lambda picture: None
        return
    with atomic_path(target) as temporary:
        if frames_per_second is None:
            yield lambda picture: Image.fromarray(picture).save(temporary, quality=95)
        else:
            with VideoWriter(temporary, frames_per_second) as writer:
                yield writer.write
