"""The masks of instances, for the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor


def mask_templates(gt_instances: Sequence[Instances], mask_size: int, field: str = "gt_mask_templates") -> Tensor:
    """Every instance's mask, cropped to its box and resized, once.

    Takes the field as MEInstDatasetMapper makes it, or ``gt_masks`` (PolygonMasks or BitMasks) as Detectron2's own
    mapper does.

    Args:
        gt_instances: of N images; images without instances need no masks.
        mask_size: S.
        field: "gt_mask_templates" or, of the size that refinement learns from, "gt_fine_templates".

    Returns:
        (M, S, S) bool on the device of the instances, one image after another.

    Raises:
        ValueError: an image has instances without masks, or templates of another size.
    """
    templates = []
    for instances in gt_instances:
        if len(instances) == 0:
            continue
        if instances.has(field):
            template = instances.get(field)
            if template.shape[-2:] != (mask_size, mask_size):
                key = "MASK_SIZE" if field == "gt_mask_templates" else "REFINE.TARGET_SIZE"
                has = f"the loader made mask templates of {tuple(template.shape[-2:])}"
                fix = "build the mapper from the same config"
                raise ValueError(f"{has}, the model has MODEL.MEINST.{key} = {mask_size}: {fix}")
            templates.append(template.bool())
        elif instances.has("gt_masks"):
            templates.append(instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, mask_size))
        else:
            fix = "train on a dataset with segmentations, or set MODEL.MASK_ON False"
            if instances.has("gt_mask_templates"):
                fix = "build the mapper from the config of the model, whose MODEL.MEINST.REFINE.ENABLED is True"
            raise ValueError(f"an image has instances without masks in {field} and gt_masks: {fix}")
    if not templates:
        return torch.zeros(0, mask_size, mask_size, dtype=torch.bool)
    return torch.cat(templates)
