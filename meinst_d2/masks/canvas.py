"""Memory for a stack of bit masks, which costs more to get from the kernel than to paint on.

A stack of masks is mostly background. ``torch.zeros`` writes all of it, page by page, after the kernel has cleared all
of it. Here a stack of usual size comes in huge pages, cleared by the kernel, and when its tensor is gone the memory is
kept for the next stack: clearing it again takes a fraction of the time that new pages take. A stack too large to be
kept comes in small pages, and only those that something is painted on cost anything.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
import weakref

import numpy as np
import numpy.typing as npt

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14
HUGE_PAGE = 2**21
KEEP_AT_MOST = 2**28
"""Bytes of the stack that is kept between two images: 100 masks of 1600 x 1600 pixels."""

Memory = npt.NDArray[np.bool_]

_kept: list[Memory] = []
"""At most one."""


class Canvas:
    """Masks without a set pixel.

    Attributes:
        masks: (N, H, W) bool, writable; keeps the memory alive.
    """

    def __init__(self, count: int, height: int, width: int) -> None:
        shape, size = (count, height, width), count * height * width
        self._pages: mmap.mmap | None = None
        if sys.platform != "linux" or size == 0:
            self.masks: Memory = np.zeros(shape, np.bool_)
        elif size > KEEP_AT_MOST:
            self._pages = _from_kernel(size)
            self.masks = np.frombuffer(self._pages, np.bool_).reshape(shape)
        else:
            memory = _reusable(size)
            self.masks = memory[:size].reshape(shape)
            # Every view and tensor of the masks keeps this very array, so nobody sees the memory when it is gone.
            weakref.finalize(self.masks, _keep, memory).atexit = False

    def make_ready(self, mask: int, top: int, height: int) -> None:
        """Have the kernel prepare the pages of rows that will be written, in one call instead of one fault per page."""
        if self._pages is None or height == 0:
            return
        _, rows, width = self.masks.shape
        begin = (mask * rows + top) * width
        page = begin - begin % mmap.PAGESIZE
        with contextlib.suppress(OSError):  # an older kernel; the pages then come one by one
            self._pages.madvise(_POPULATE_WRITE, page, begin + height * width - page)


def _reusable(size: int) -> Memory:
    """At least this many clear bytes, those of an earlier stack if they are enough."""
    with contextlib.suppress(IndexError):
        memory = _kept.pop()
        if len(memory) >= size:
            memory[:size] = False
            return memory
    pages = _from_kernel(-(-size // HUGE_PAGE) * HUGE_PAGE)
    with contextlib.suppress(OSError):  # a kernel without huge pages; small ones then come one by one
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.bool_)


def _keep(memory: Memory) -> None:
    """Keep the larger of two memories."""
    with contextlib.suppress(IndexError):
        memory = max(memory, _kept.pop(), key=len)
    _kept.append(memory)


def _from_kernel(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
