"""The outlines of the generated shapes, in units of their own; whoever draws them scales them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Outline = npt.NDArray[np.float64]
"""(n, 2) points (x, y)."""


def _circle(points: int = 40) -> Outline:
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.stack((np.cos(angle), np.sin(angle)), axis=1)


def rotated(rng: np.random.Generator, points: Outline) -> Outline:
    angle = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def blob(rng: np.random.Generator) -> Outline:
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = 1 + sum(rng.normal(0, 0.35 / k) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in range(2, 6))
    return _circle() * np.maximum(radius, 0.25)[:, None]


def _ring_outlines(rng: np.random.Generator, side: float) -> list[Outline]:
    outer = rotated(rng, _circle() * [1, rng.uniform(0.7, 1)])
    return [outer, outer * rng.uniform(0.45, 0.6)]


def _star_outlines(rng: np.random.Generator, side: float) -> list[Outline]:
    radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1)
    return [rotated(rng, _circle(10) * radius[:, None])]


def _crescent_outlines(rng: np.random.Generator, side: float) -> list[Outline]:
    distance, radius = rng.uniform(0.45, 0.6), 0.8  # of the disc that is taken away
    tip = np.arccos((1 + distance**2 - radius**2) / (2 * distance))
    inner_tip = np.arctan2(np.sin(tip), np.cos(tip) - distance)
    outer, inner = np.linspace(tip, 2 * np.pi - tip, 30), np.linspace(2 * np.pi - inner_tip, inner_tip, 30)
    outer_arc = np.stack((np.cos(outer), np.sin(outer)), axis=1)
    inner_arc = np.stack((distance + radius * np.cos(inner), radius * np.sin(inner)), axis=1)
    return [rotated(rng, np.concatenate((outer_arc, inner_arc)))]


def _bar_outlines(rng: np.random.Generator, side: float) -> list[Outline]:
    aspect = max(2.0, min(rng.uniform(4, 6), side / 5))  # at least 5 pixels thick
    return [rotated(rng, np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [1, 1 / aspect])]


def _cut_outlines(rng: np.random.Generator, side: float) -> list[Outline]:
    """Two caps of an ellipse, and the strip between them."""
    half = max(rng.uniform(0.12, 0.2), 4 / side)  # of the strip's width
    start = np.arcsin(half)
    angle = np.linspace(start, np.pi - start, 20)
    cap = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    strip = np.array([[-1.3, -half], [1.3, -half], [1.3, half], [-1.3, half]])
    stretch = [rng.uniform(0.7, 1), 1]
    joined = rotated(rng, np.concatenate((cap, cap * [1, -1], strip)) * stretch)
    return [joined[:20], joined[20:40], joined[40:]]


def _blob_outlines(rng: np.random.Generator, side: float) -> list[Outline]:
    return [rotated(rng, blob(rng))]


OUTLINES: dict[str, Callable[[np.random.Generator, float], list[Outline]]] = {
    "ring": _ring_outlines,
    "star": _star_outlines,
    "crescent": _crescent_outlines,
    "bar": _bar_outlines,
    "cut": _cut_outlines,
    "blob": _blob_outlines,
}
"""By category: (generator, extent in pixels) -> outlines. A ring has its hole second, a cut disc its strip third."""
