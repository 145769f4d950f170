"""Guesses at the one mistake behind many problems."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import numpy as np

from meinst_d2.check import image_problems as ip
from meinst_d2.check import problems as p
from meinst_d2.check.masks import differ, mask_bounds
from meinst_d2.check.problem import Problem
from meinst_d2.check.scan import CocoFile
from meinst_d2.data.annotations import InstanceAnnotation

LOOKED_AT = 500
"""Annotations, evenly spaced, that a guess is made from."""


def _some(file: CocoFile, problem: Problem) -> Iterator[InstanceAnnotation]:
    rows = np.flatnonzero(file.having(problem))
    return (file.annotations[int(row)] for row in rows[:: -(-len(rows) // LOOKED_AT) or 1])


def box_format(file: CocoFile) -> str:
    """Whether boxes that do not fit their masks would, read otherwise."""
    as_corners, relative, number = 0, 0, 0
    for annotation in _some(file, p.MISMATCH):
        x0, y0, x1, y1 = annotation.box
        bounds = mask_bounds(annotation)
        given = (x0, y0, x1 - x0, y1 - y0)
        number += 1
        relative += max(given) <= 1
        as_corners += bounds is not None and not differ(given, bounds)
    if as_corners > number / 2:
        return "most fit their masks when read as [x0, y0, x1, y1]: COCO's boxes are [x, y, width, height]"
    if relative > number / 2:
        return "most lie between 0 and 1: COCO's boxes are in pixels"
    return ""


def rle_size(file: CocoFile) -> str:
    """Whether sizes are turned round."""
    turned, number = 0, 0
    for annotation in _some(file, p.BAD_RLE):
        number += 1
        segmentation = annotation.segmentation
        size = segmentation.get("size") if isinstance(segmentation, Mapping) else None
        turned += isinstance(size, list) and tuple(size) == annotation.image_size[::-1] != annotation.image_size
    return "most have the size [width, height]: COCO's is [height, width]" if turned > number / 2 else ""


def missing_names(file: CocoFile, folder: str | os.PathLike[str]) -> str:
    """Whether files are there under another name."""
    rows = np.flatnonzero(file.image_flags & np.uint32(ip.MISSING.bit))
    rows = rows[:: -(-len(rows) // LOOKED_AT) or 1].tolist()
    there = sum(os.path.isfile(os.path.join(folder, os.path.basename(file.names[row]))) for row in rows)
    if rows and there > len(rows) / 2:
        return "most are there without the folders that file_name gives: name the folder that these are relative to"
    return ""
