"""Masks of a dataset that evaluation cannot be trusted with: its compiled code loops over some of them forever."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meinst_d2.masks.rle import FEW_POINTS, UnusableInstance, runs_of, usable_polygons


def without_unreadable_masks(dataset: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """A COCO dataset without the annotations whose masks cannot be read, and how many those were.

    Polygons of fewer than 3 points stay: they are read as masks without pixels.

    Args:
        dataset: what a COCO file holds; not modified.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
    annotations = dataset["annotations"]
    kept = [x for x in annotations if _is_readable(x.get("segmentation"), sizes.get(x["image_id"]))]
    return {**dataset, "annotations": kept}, len(annotations) - len(kept)


def _is_readable(segmentation: Any, size: tuple[int, int] | None) -> bool:
    try:
        if isinstance(segmentation, Mapping):
            if size is not None:
                runs_of(segmentation, *size)
        elif isinstance(segmentation, list):
            usable_polygons(segmentation)
        else:
            return False
    except UnusableInstance as error:
        return error.reason == FEW_POINTS
    except (ValueError, TypeError):
        return False
    return True
