"""Videos, frame by frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

CODEC = "mp4v"
DEFAULT_FRAMES_PER_SECOND = 25.0
"""Where a video does not say."""


class VideoReader:
    """The frames of a video.

    Attributes:
        num_frames: as the file says; 0 where it does not.
        frames_per_second: of the video.
        num_read: so far.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """
        Raises:
            OSError: OpenCV cannot open the file.
        """
        self.path, self.num_read = os.fspath(path), 0
        self._capture = cv2.VideoCapture(self.path)
        if not self._capture.isOpened():
            raise OSError("OpenCV cannot open it as a video")
        self.num_frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.frames_per_second = rate if 0 < rate <= 1000 else DEFAULT_FRAMES_PER_SECOND

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W, 3) uint8 RGB each, until the end or the first frame that cannot be decoded."""
        while True:
            decoded, frame = self._capture.read()
            if not decoded:
                return
            self.num_read += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    @property
    def problem(self) -> str | None:
        """What kept the video from being read to its end, once it has been iterated over."""
        if self.num_read == 0:
            return "it has no frame that OpenCV can decode"
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
