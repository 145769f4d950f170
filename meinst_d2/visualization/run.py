"""Drawing what a model finds in images and videos, one after another; what cannot be read is passed over."""

from __future__ import annotations

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

from meinst_d2.data.image_files import UNREADABLE, reason_of
from meinst_d2.files import atomic_path
from meinst_d2.visualization.drawing import MaskVideoVisualizer, MaskVisualizer
from meinst_d2.visualization.inputs import Source
from meinst_d2.visualization.predictor import Predictor, UnusableImage
from meinst_d2.visualization.results import ResultFile
from meinst_d2.visualization.video import VideoReader, VideoWriter


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
    predictor: Predictor,
    sources: Sequence[Source],
    targets: Sequence[Path] | None,
    results: ResultFile | None = None,
) -> Summary:
    """Look at every source, with progress on the console.

    Args:
        predictor: of the model.
        sources: what to look at.
        targets: where to draw each; None draws nothing.
        results: collects the detections.
    """
    demo = _Show(predictor, results)
    with tqdm(total=len(sources), desc="inputs", unit="file") as progress:
        for source, target in zip(sources, targets or [None] * len(sources), strict=True):
            if source.is_video:
                demo.video(source.path, target)
            else:
                demo.image(source.path, target)
            progress.update()
    return demo.summary


class _Show:
    def __init__(self, predictor: Predictor, results: ResultFile | None) -> None:
        self.predictor, self.results, self.summary = predictor, results, Summary()
        self.metadata = Metadata(name="demo", thing_classes=predictor.trained.class_names)

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
        found = self.predictor(image)
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
