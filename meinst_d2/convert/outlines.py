"""What the JSON files of annotation tools have in common: shapes, and being decoded into what is expected of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

ROUNDNESS = 0.05
"""Pixels that a polygon may differ from the ellipse that it stands for."""
MOST_CORNERS = 1024
T = TypeVar("T")


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0.0) -> list[float]:
    """A polygon with its corners on an ellipse; ``angle`` turns it, in radians, clockwise in an image."""
    largest = max(abs(radius_x), abs(radius_y))
    # The arc over a chord of n rises r (1 - cos(pi / n)) above it, about r pi^2 / (2 n^2).
    corners = math.ceil(min(max(16.0, math.pi * math.sqrt(largest / (2 * ROUNDNESS))), MOST_CORNERS))
    turn = np.arange(corners) * (2 * math.pi / corners)
    along, across = radius_x * np.cos(turn), radius_y * np.sin(turn)
    cos, sin = math.cos(angle), math.sin(angle)
    points = np.stack((x + along * cos - across * sin, y + along * sin + across * cos), axis=1)
    outline: list[float] = points.ravel().tolist()
    return outline


def decode(path: Path, kind: type[T], tool: str) -> T:
    """The content of a JSON file; raises a ValueError if it is not of the kind that the tool writes."""
    try:
        return msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of {tool}: {error}; name another one, or correct it") from error
