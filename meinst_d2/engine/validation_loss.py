"""The training losses of a dataset that is not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.utils import comm
from torch import Tensor, nn

from meinst_d2.data.mapper import MEInstDatasetMapper

PER_POSITIVE = ("loss_cls", "loss_centerness")
"""Losses that are divided by the number of positives; the others by the sum of their centerness."""


def build_validation_loader(cfg: CfgNode, dataset_name: str) -> Iterable[Sequence[Mapping[str, Any]]]:
    """Images at test size, with their instances as in training, shared by the processes."""
    mapper = MEInstDatasetMapper(
        augmentations=[T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)],
        image_format=cfg.INPUT.FORMAT,
        mask_size=cfg.MODEL.MEINST.MASK_SIZE if cfg.MODEL.MASK_ON else None,
    )
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return build_detection_test_loader(records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)


@torch.no_grad()
def validation_losses(model: nn.Module, loader: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """The losses of a dataset as if it were one batch, and their sum as ``total_loss``.

    Nothing is learned and nothing is random: masks are encoded with the mean of their clamp.

    Args:
        model: an :class:`~meinst_d2.modeling.meta_arch.MEInstDetector`.
        loader: lists of inputs with ``instances``; this process's share of the dataset.
    """
    criterion, device = model.proposal_generator.criterion, model.device
    totals: dict[str, Tensor] = {}
    counts = torch.zeros(2)
    with _giving_losses(model), criterion.normalized_by(torch.ones(2, device=device)):
        for batch in loader:
            sizes = [tuple(x["image"].shape[-2:]) for x in batch]
            counts += model.proposal_generator.count_positives(sizes, [x["instances"] for x in batch])
            for name, loss in model(batch).items():
                totals[name] = totals.get(name, torch.zeros((), device=device)) + loss
    return _over_processes({name: total.item() for name, total in totals.items()}, counts)


def _over_processes(totals: dict[str, float], counts: Tensor) -> dict[str, float]:
    gathered = comm.all_gather((totals, counts))
    positives, centerness = torch.stack([mine for _, mine in gathered]).sum(0).tolist()
    losses = {
        name: sum(mine.get(name, 0.0) for mine, _ in gathered)
        / (max(positives, 1.0) if name in PER_POSITIVE else max(centerness, 1e-6))
        for name in {name: None for mine, _ in gathered for name in mine}
    }
    return losses | {"total_loss": sum(losses.values())}


@contextmanager
def _giving_losses(model: nn.Module) -> Iterator[None]:
    """The model gives losses, as in training, while its layers behave as in evaluation."""
    trains = model.training
    model.eval()
    model.training = model.proposal_generator.training = True
    try:
        yield
    finally:
        model.train(trains)
