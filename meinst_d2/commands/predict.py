"""Draw what a trained model finds in images and videos.

The flags are those of Detectron2's demo.py, and more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from meinst_d2.commands import make_parser, reporting
from meinst_d2.data.image_files import UNREADABLE, reason_of
from meinst_d2.evaluation.results import ResultFile
from meinst_d2.files import atomic_path
from meinst_d2.model_zoo import TrainedModel, UnusableImage
from meinst_d2.visualization.drawing import MaskVideoVisualizer, MaskVisualizer
from meinst_d2.visualization.inputs import Source, find_sources, plan_outputs, require_own_file
from meinst_d2.visualization.video import VideoReader, VideoWriter

EPILOG = """examples:
  meinst predict --weights output/demo/model_final.pth --input output/demo/shapes/val
  meinst predict --weights shapes-1a2b3c4d.pth --input 'street/*.jpg' clip.mp4 --output output/street
  meinst predict --config-file MEInst_R_50_3x --weights MEInst_R_50_3x.pth --input street.jpg --output found.png
  meinst predict --config-file output/imported/config.yaml --weights output/imported/model.pth \\
      --input photos --save-json found.json --confidence-threshold 0.05

The model needs --config-file (a file, or a name in configs/) and --weights. Weights alone do where they say how they
are built: files of meinst publish and meinst import, and checkpoints beside their run's
config.yaml. A config.yaml alone does where model_final.pth is beside it. Number of classes, class names and mask
components are those of the weights.

--save-json writes COCO results with masks as RLE: image_id counts images and frames from 1, category_id counts the
model's classes from 0; file_name, category_name and (in videos) frame say the same in words. It has what is drawn:
lower --confidence-threshold to evaluate.

A file that cannot be read is reported and passed over. The exit status is 1 if none could be read.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("predict", __doc__, EPILOG)
    parser.add_argument("--config-file", metavar="FILE_OR_NAME", help="of the model")
    parser.add_argument("--weights", metavar="FILE_OR_URL", help="default: MODEL.WEIGHTS of --opts, or see below")
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="images, videos, folders, globs in quotation marks"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="a folder, or for one input a file (default output/found; with --save-json, by default nothing is drawn)",
    )
    parser.add_argument("--save-json", type=Path, metavar="FILE", help="write the detections as COCO results")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, metavar="SCORE", help="least score (default 0.5)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: MODEL.DEVICE, or cpu where there is no GPU)")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides, at the end"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.confidence_threshold <= 1:
        parser.error(f"--confidence-threshold {args.confidence_threshold:g} is no score: choose 0 to 1")
    if args.output is None and args.save_json is None:
        args.output = Path("output/found")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    with reporting("predict"):
        sys.exit(run(args))


def run(args: argparse.Namespace) -> int:
    # Imported here so that --help answers at once.
    from meinst_d2.files import require_writable
    from meinst_d2.model_zoo import load_trained

    sources = find_sources(args.input)
    targets = None if args.output is None else plan_outputs(sources, args.output)
    for path in (*(targets or [])[:1], *([args.save_json] if args.save_json else [])):
        require_writable(path)
    trained = load_trained(args.config_file, args.weights, args.opts, args.device)
    if args.save_json is not None:
        require_own_file(args.save_json, sources, targets or [], [trained.weights, args.config_file or trained.weights])
    print(f"{trained.weights}: {len(trained.class_names)} classes")
    for note in trained.notes:
        print(f"note: {note}")
    results = ResultFile(args.save_json, trained.class_names) if args.save_json else None
    summary = show(trained, args.confidence_threshold, sources, targets, results)
    if results is not None and summary.num_images:
        results.write()
        print(f"wrote {args.save_json}")
    if summary.written:
        where = summary.written[0] if len(summary.written) == 1 else args.output
        print(f"wrote {where} ({len(summary.written)} of {len(sources)} inputs)")
    print(f"{summary.num_objects} objects in {summary.num_images} images")
    for problem in summary.problems:
        print(f"could not be read: {problem}", file=sys.stderr)
    return 0 if summary.num_images else 1


@dataclass
class Summary:
    """What became of the sources.

    Attributes:
        written: pictures and videos.
        num_images: images and frames that were looked at.
        num_objects: found in all of them.
        problems: a sentence for every source that could not be read, or not to its end.
    """

    written: list[Path] = field(default_factory=list)
    num_images: int = 0
    num_objects: int = 0
    problems: list[str] = field(default_factory=list)


def show(
    trained: TrainedModel,
    min_score: float,
    sources: Sequence[Source],
    targets: Sequence[Path] | None,
    results: ResultFile | None = None,
) -> Summary:
    """Look at every source, with progress on the console.

    Args:
        trained: the model.
        min_score: least score of a detection.
        sources: what to look at.
        targets: where to draw each; None draws nothing.
        results: collects the detections.
    """
    demo = _Show(trained, min_score, results)
    with tqdm(total=len(sources), desc="inputs", unit="file") as progress:
        for source, target in zip(sources, targets or [None] * len(sources), strict=True):
            if source.is_video:
                demo.video(source.path, target)
            else:
                demo.image(source.path, target)
            progress.update()
    return demo.summary


class _Show:
    def __init__(self, trained: TrainedModel, min_score: float, results: ResultFile | None) -> None:
        self.trained, self.min_score, self.results, self.summary = trained, min_score, results, Summary()
        self.metadata = Metadata(name="demo", thing_classes=trained.class_names)

    def image(self, path: Path, target: Path | None) -> None:
        try:
            image = read_image(str(path), format="RGB")
        except UNREADABLE as error:
            self._report(path, reason_of(error))
            return
        try:
            found = self._look(image, path, None)
        except UnusableImage as error:
            self._report(path, str(error))
            return
        if target is not None:
            drawn = MaskVisualizer(image, self.metadata).draw_instance_predictions(found).get_image()
            with atomic_path(target) as temporary:
                Image.fromarray(drawn).save(temporary, quality=95)
            self.summary.written.append(target)

    def video(self, path: Path, target: Path | None) -> None:
        try:
            reader = VideoReader(path)
        except OSError as error:
            self._report(path, str(error))
            return
        with reader:
            frames = tqdm(reader, total=reader.num_frames or None, desc=path.name, unit="frame", leave=False)
            try:
                if target is None:
                    for number, frame in enumerate(frames):
                        self._look(frame, path, number)
                else:
                    self._draw_video(reader, frames, path, target)
            except UnusableImage as error:
                self._report(path, str(error))
                return
        if reader.problem:
            self._report(path, reader.problem)

    def _draw_video(self, reader: VideoReader, frames: Iterable[np.ndarray], path: Path, target: Path) -> None:
        visualizer = MaskVideoVisualizer(self.metadata)
        try:
            with atomic_path(target) as temporary:
                with VideoWriter(temporary, reader.frames_per_second) as writer:
                    for number, frame in enumerate(frames):
                        found = self._look(frame, path, number)
                        writer.write(visualizer.draw_instance_predictions(frame, found).get_image())
                if reader.num_read == 0:
                    raise _NothingToWrite
        except _NothingToWrite:
            return
        self.summary.written.append(target)

    def _look(self, image: np.ndarray, path: Path, frame: int | None) -> Instances:
        found = self.trained(image, min_score=self.min_score, masks="rle")  # a bit mask has the size of the image
        self.summary.num_images += 1
        self.summary.num_objects += len(found)
        if self.results is not None:
            self.results.add(found, path, frame)
        return found

    def _report(self, path: Path, reason: str) -> None:
        problem = f"{path}: {reason}"
        self.summary.problems.append(problem)
        tqdm.write(f"cannot read {problem}", file=sys.stderr)


class _NothingToWrite(Exception):
    """Makes the temporary file of a video without frames vanish."""
