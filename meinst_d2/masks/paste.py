"""Templates stretched over their boxes, as bit masks of the whole image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from meinst_d2.masks.canvas import Canvas
from meinst_d2.masks.runs import BoolArray, IntArray, Runs, Windows, find_runs, usable_boxes, windows_of


def paste_masks(templates: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """What Detectron2's ``paste_masks_in_image`` computes at a threshold of one half, on the CPU.

    Args:
        templates: (N, S, S) probabilities, floating point. NaN counts as 0.
        boxes: (N, 4) ``xyxy`` in pixels of the image, which they may leave. Nothing is set where a box has no area or
            is not finite.
        height, width: of the image.

    Returns:
        (N, height, width) bool.
    """
    canvas = Canvas(len(templates), height, width)
    usable = usable_boxes(boxes.detach().numpy())
    windows = windows_of(usable, height, width)
    for runs in find_runs(templates.detach().float().numpy(), usable, windows):
        part = windows.of(runs.masks)
        pixels, ends = _pixels_of(runs, part)
        for mask, y, x, h, w, end in zip(runs.masks, *part.as_lists(), ends.tolist(), strict=True):
            canvas.make_ready(mask, y, h)
            canvas.masks[mask, y : y + h, x : x + w] = pixels[end - h * w : end].reshape(h, w)
    return torch.from_numpy(canvas.masks)


def _pixels_of(runs: Runs, windows: Windows) -> tuple[BoolArray, IntArray]:
    """The pixels of all windows one after another, each row by row, and (N,) where each window ends."""
    areas = windows.height * windows.width
    ends = np.cumsum(areas)
    origins = ends - areas - windows.top * windows.width - windows.left
    lines = origins[runs.mask] + runs.line * windows.width[runs.mask]
    changes = np.empty(2 * len(lines) + 2, np.int64)
    changes[0], changes[-1] = 0, ends[-1]
    changes[1:-1:2] = lines + runs.start
    changes[2:-1:2] = lines + runs.stop
    states = np.zeros(len(changes) - 1, np.bool_)
    states[1::2] = True
    return np.repeat(states, np.diff(changes)), ends
