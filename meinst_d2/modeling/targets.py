"""The mask templates of a batch's ground truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor


def mask_templates(gt_instances: Sequence[Instances], mask_size: int) -> Tensor:
    """Every instance's mask, cropped to its box and resized, once.

    Takes ``gt_mask_templates`` as MEInstDatasetMapper makes them, or ``gt_masks`` (PolygonMasks or BitMasks) as
    Detectron2's own mapper does.

    Args:
        gt_instances: of N images; images without instances need no masks.
        mask_size: S.

    Returns:
        (M, S, S) bool on the device of the instances, one image after another.

    Raises:
        ValueError: an image has instances without masks, or templates of another size.
    """
    templates = []
    for instances in gt_instances:
        if len(instances) == 0:
            continue
        if instances.has("gt_mask_templates"):
            template = instances.gt_mask_templates
            if template.shape[-2:] != (mask_size, mask_size):
                raise ValueError(
                    f"the loader made mask templates of {tuple(template.shape[-2:])}, the model has "
                    f"MODEL.MEINST.MASK_SIZE = {mask_size}: build the mapper from the same config"
                )
            templates.append(template.bool())
        elif instances.has("gt_masks"):
            templates.append(instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, mask_size))
        else:
            raise ValueError(
                "an image has instances without masks: train on a dataset with segmentations, or set "
                "MODEL.MASK_ON False"
            )
    if not templates:
        return torch.zeros(0, mask_size, mask_size, dtype=torch.bool)
    return torch.cat(templates)
