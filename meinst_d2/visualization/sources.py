"""Images, videos and cameras to look at, frame by frame, and the files that their drawings go to."""

from __future__ import annotations

import glob
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from meinst_d2.data.image_files import UNREADABLE, read_image

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
VIDEO_OUTPUT_SUFFIX = ".mp4"
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""What pictures are written as; others become .png."""
CODEC = "mp4v"
DEFAULT_FRAMES_PER_SECOND = 25.0
"""Where a video does not say."""


@dataclass(frozen=True)
class Source:
    """Something to look at."""

    path: Path  # of the file, as it was found; of a camera, what its drawing is called
    is_video: bool  # or else an image
    camera: int | None = None  # its number, for a camera


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The images and videos that arguments of a command name, each once.

    Args:
        inputs: files, folders (their images and videos, by name, without folders below) and globs (``**`` goes down).

    Raises:
        FileNotFoundError: an argument names nothing.
    """
    Image.init()
    pictures = frozenset(suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN)
    found: dict[str, Path] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            paths = [x for x in path.iterdir() if x.is_file() and x.suffix.lower() in pictures | VIDEO_SUFFIXES]
            if not paths:
                raise FileNotFoundError(f"the folder {text} holds no images or videos: name another, or a glob")
        elif path.exists():
            paths = [path]
        else:
            paths = [Path(x) for x in glob.glob(str(path), recursive=True) if os.path.isfile(x)]
            if not paths:
                raise FileNotFoundError(
                    f"no file, folder or pattern matches {text}: give --input FILE, FOLDER or 'GLOB'"
                )
        for path in sorted(paths, key=_natural):
            found.setdefault(os.path.realpath(path), path)
    return [
        Source(path, path.suffix.lower() in VIDEO_SUFFIXES or (path.suffix.lower() not in pictures and _is_video(path)))
        for path in found.values()
    ]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sorts frame_2 before frame_10."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _is_video(path: Path) -> bool:
    """Whether a file whose suffix says nothing is not an image, and opened by OpenCV."""
    try:
        with Image.open(path):
            return False
    except UNREADABLE:
        with open(path, "rb") as file:
            is_text = b"\0" not in file.read(1024)  # which OpenCV draws as a terminal would show it
        return not is_text and cv2.VideoCapture(str(path)).isOpened()


def plan_outputs(sources: Sequence[Source], output: Path) -> list[Path]:
    """The file that every source is drawn to; no two are the same, and none is a source.

    Args:
        sources: what will be drawn.
        output: a folder, or for a single source a file with the suffix of a picture or, for a video, .mp4.

    Raises:
        ValueError: a drawing would replace a source, or several would have to go to one file.
    """
    targets: list[Path] = []
    suffix = output.suffix.lower()
    if suffix in PICTURE_SUFFIXES | VIDEO_SUFFIXES and not output.is_dir() and sources:
        if len(sources) > 1:
            raise ValueError(f"--output {output} is one file for {len(sources)} inputs: name a folder")
        if sources[0].is_video and suffix != VIDEO_OUTPUT_SUFFIX:
            raise ValueError(f"--output {output}: videos are written as {VIDEO_OUTPUT_SUFFIX}")
        if not sources[0].is_video and suffix not in PICTURE_SUFFIXES:
            raise ValueError(f"--output {output}: {sources[0].path} is an image, name a picture or a folder")
        targets.append(output)
    else:
        taken: set[str] = set()
        for source in sources:
            suffix = source.path.suffix if source.path.suffix.lower() in PICTURE_SUFFIXES else ".png"
            suffix = VIDEO_OUTPUT_SUFFIX if source.is_video else suffix
            name, number = source.path.stem + suffix, 1
            while name.lower() in taken:  # some file systems do not tell A.jpg from a.jpg
                number += 1
                name = f"{source.path.stem}-{number}{suffix}"
            taken.add(name.lower())
            targets.append(output / name)
    originals = {os.path.realpath(source.path) for source in sources if source.camera is None}
    for target in targets:
        if os.path.realpath(target) in originals:
            raise ValueError(f"--output {output} would replace the input {target}: name another folder")
    return targets


class Frames:
    """What a source shows: the frames of a video or a camera, or an image as the only one.

    Attributes:
        num_frames: as the file says; 0 where it does not.
        frames_per_second: of a video.
        num_read: so far.
    """

    def __init__(self, source: Source) -> None:
        """Open the source and read its first frame.

        Raises:
            OSError: it cannot be read.
        """
        self.num_frames, self.frames_per_second, self.num_read = 1, DEFAULT_FRAMES_PER_SECOND, 0
        self._is_live, self._stopped = source.camera is not None, False
        self._capture: cv2.VideoCapture | None = None
        if not source.is_video:
            self._frame: np.ndarray | None = read_image(str(source.path), "RGB")
            return
        what = f"camera {source.camera}" if self._is_live else f"the video {source.path}"
        self._capture = cv2.VideoCapture(str(source.path) if source.camera is None else source.camera)
        if not self._capture.isOpened():
            raise OSError(f"{what} cannot be read: OpenCV cannot open it")
        self._frame = self._next()
        if self._frame is None:
            raise OSError(f"{what} cannot be read: it has no frame that OpenCV can decode")
        self.num_frames = 0 if self._is_live else max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        if 0 < rate <= 1000:
            self.frames_per_second = rate

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB each, to the end or the first frame that cannot be decoded; of a camera, until Ctrl-C."""
        before = signal.signal(signal.SIGINT, self._stop) if self._is_live else None
        try:
            while self._frame is not None and not self._stopped:
                self.num_read += 1
                yield self._frame
                self._frame = self._next()
        finally:
            if self._capture is not None:
                self._capture.release()
            if self._is_live:
                signal.signal(signal.SIGINT, before)

    def _next(self) -> np.ndarray | None:
        decoded, frame = self._capture.read() if self._capture is not None else (False, None)
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) if decoded else None

    def _stop(self, *_: object) -> None:
        self._stopped = True

    @property
    def problem(self) -> str | None:
        """What kept a video from being read to its end, once it has been iterated over."""
        if self.num_read < self.num_frames:
            return f"frame {self.num_read + 1} of {self.num_frames} cannot be decoded, the video ends before it"
        return None


class VideoWriter:
    """Writes an .mp4; the first frame says how large it is."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self.path, self.frames_per_second = path, frames_per_second
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.release()

    def write(self, frame: np.ndarray) -> None:
        """
        Args:
            frame: (H, W, 3) uint8 RGB; later ones are brought to the first one's size.

        Raises:
            OSError: this OpenCV cannot write such videos.
        """
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            code = cv2.VideoWriter.fourcc(*CODEC)
            self._writer = cv2.VideoWriter(str(self.path), code, self.frames_per_second, self._size)
            if not self._writer.isOpened():
                raise OSError(f"this OpenCV cannot write {CODEC} videos: install opencv-python-headless from PyPI")
        if frame.shape[1::-1] != self._size:
            frame = cv2.resize(frame, self._size)
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
