"""Automatic mixed precision: what a model computes in, and what stays out of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "float16", "bfloat16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """A context in which convolutions and matrix products compute in ``precision``; "float32" changes nothing."""
    if precision == "float32" or not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operators on ``device`` compute in the dtype of their inputs."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()  # the meta device, for one
