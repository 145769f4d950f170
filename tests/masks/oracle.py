"""The slow way."""

from __future__ import annotations

import numpy as np
import pycocotools.mask as mask_util
import torch
from torch import Tensor
from torch.nn import functional as F

from meinst_d2.masks import encode_masks, encode_templates


def stretch_one_by_one(templates: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """(N, height, width) probabilities at every pixel of the image, by grid_sample as in Detectron2; 0 without area."""
    values = torch.zeros(len(boxes), height, width)
    for template, box, value in zip(templates, boxes, values, strict=True):
        x0, y0, x1, y1 = box
        if not (box.isfinite().all() and (x1 - x0).isfinite() and x1 > x0 and y1 > y0):
            continue
        x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
        y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), 2)
        value += F.grid_sample(template[None, None], grid[None], align_corners=False)[0, 0]
    return values


def assert_thresholded(masks: Tensor, values: Tensor) -> None:
    """The masks are where the values reach one half, up to float32's rounding of a value next to one half."""
    assert masks.shape == values.shape and masks.dtype == torch.bool
    differing = values[masks != (values >= 0.5)]
    assert ((differing - 0.5).abs() < 1e-6).all() and len(differing) <= 2


def random_templates(rng: np.random.Generator, count: int, size: int) -> Tensor:
    """(count, size, size) float32 probabilities: noise, which has as many edges as can be."""
    return torch.from_numpy(rng.random((count, size, size)).astype(np.float32))


def check_encodings(templates: torch.Tensor, boxes: torch.Tensor, masks: torch.Tensor) -> None:
    """Both encoders write what pycocotools writes, and pycocotools reads the masks back."""
    _, height, width = masks.shape
    expected = [mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in masks]
    assert encode_templates(templates, boxes, height, width) == expected
    assert encode_masks(masks.numpy(), boxes.numpy()) == expected
    assert np.array_equal(mask_util.decode(expected).transpose(2, 0, 1), masks.numpy())
