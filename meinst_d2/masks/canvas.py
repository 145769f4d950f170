"""Memory for a stack of bit masks, of which only the touched pages cost anything.

A stack of masks is mostly background. ``torch.zeros`` writes all of it, after the kernel has cleared all of it; NumPy
asks for huge pages, which are cleared whole. Here pages of the usual size come from the kernel, clear, where something
is written. Even so they are half of the time of pasting.
"""

from __future__ import annotations

import contextlib
import mmap
import sys

import numpy as np
import numpy.typing as npt

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14


class Canvas:
    """Masks without a set pixel.

    Attributes:
        masks: (N, H, W) bool, writable; keeps the memory alive.
    """

    def __init__(self, count: int, height: int, width: int) -> None:
        self.masks: npt.NDArray[np.bool_]
        shape, size = (count, height, width), count * height * width
        self._memory: mmap.mmap | None = None
        if sys.platform != "linux" or size == 0:
            self.masks = np.zeros(shape, np.bool_)
            return
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.masks = np.frombuffer(self._memory, np.bool_).reshape(shape)

    def make_ready(self, mask: int, top: int, height: int) -> None:
        """Have the kernel prepare the pages of rows that will be written, in one call instead of one fault per page."""
        if self._memory is None or height == 0:
            return
        _, rows, width = self.masks.shape
        begin = (mask * rows + top) * width
        page = begin - begin % mmap.PAGESIZE
        with contextlib.suppress(OSError):  # an older kernel; the pages then come one by one
            self._memory.madvise(_POPULATE_WRITE, page, begin + height * width - page)
