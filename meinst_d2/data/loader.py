"""The training loader: batch number b depends on the seed and b, on nothing else.

Sample order, grouping by aspect ratio and every random choice of augmentation are drawn from (seed, position), so the
number of workers changes nothing, and training can resume at any iteration.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from meinst_d2.config import check_choices
from meinst_d2.data.copy_paste import CopyPaste
from meinst_d2.data.datasets import DatasetError, training_records
from meinst_d2.data.instances import count_learnable
from meinst_d2.data.mapper import MEInstDatasetMapper

Sample = tuple[int, int]
"""An index into the dataset, and the position of the sample in the whole of training."""


@contextmanager
def seeded(*entropy: int) -> Iterator[None]:
    """Within the block, the random states of Python, numpy and torch (CPU) follow from ``entropy``."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seeds = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.random.default_generator.manual_seed(int(seeds[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededMapDataset(Dataset[dict[str, Any]]):
    """Maps records to samples, with the randomness of a sample drawn from its position in training."""

    def __init__(self, records: Sequence[Any], mapper: Callable[[Any], dict[str, Any]], seed: int) -> None:
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        index, position = sample
        with seeded(self.seed, position):
            return self.mapper(self.records[index])


class TrainingBatches:
    """An endless sequence of batches, the same for any number of processes and workers.

    Every epoch visits the images in an order drawn from (seed, epoch). Images of different groups (wide and tall) do
    not share a batch; what is left of a group at the end of an epoch goes into its first batch of the next. A batch is
    cut into equal parts, one per process. ``start`` is the number of the batch that an iterator begins with.
    """

    def __init__(
        self,
        *,
        groups: npt.NDArray[np.integer],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeat_factors: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """
        Args:
            groups: (num_images,) the group of each image.
            batch_size: over all processes.
            seed: not negative.
            rank, world_size: of this process.
            repeat_factors: (num_images,) how often an epoch visits each image on average (fractions are drawn again
                every epoch); None for once.

        Raises:
            ValueError: the processes cannot share a batch equally, or there are no images.
        """
        if batch_size % world_size:
            shared = f"SOLVER.IMS_PER_BATCH = {batch_size} cannot be shared by {world_size} processes"
            raise ValueError(f"{shared}: choose a multiple")
        if len(groups) == 0:
            raise ValueError("the training set has no images")
        self.groups, self.batch_size, self.seed = groups, batch_size, seed
        self.rank, self.world_size, self.repeat_factors = rank, world_size, repeat_factors
        self.start = 0

    def __iter__(self) -> Iterator[list[Sample]]:
        """This process's part of every batch."""
        share = self.batch_size // self.world_size
        mine = range(self.rank * share, (self.rank + 1) * share)
        left = {int(group): np.zeros(0, np.int64) for group in np.unique(self.groups)}
        epochs = (self._batches_of_epoch(self._order(epoch), left) for epoch in itertools.count())
        for number, batch in enumerate(itertools.chain.from_iterable(epochs)):
            if number >= self.start:
                yield [(int(batch[i]), number * self.batch_size + i) for i in mine]

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng((self.seed, epoch))
        indices = np.arange(len(self.groups))
        if self.repeat_factors is not None:
            whole = np.floor(self.repeat_factors).astype(np.int64)
            indices = indices.repeat(whole + (rng.random(len(indices)) < self.repeat_factors - whole))
        return rng.permutation(indices)

    def _batches_of_epoch(
        self, order: npt.NDArray[np.int64], left: dict[int, npt.NDArray[np.int64]]
    ) -> list[npt.NDArray[np.int64]]:
        """The batches that fill up during an epoch, in the order of their last image; updates what is ``left``."""
        batches: list[tuple[int, npt.NDArray[np.int64]]] = []  # with the place in ``order`` of the last image
        for group, waiting in left.items():
            places = (self.groups[order] == group).nonzero()[0]
            images = np.concatenate((waiting, order[places]))
            places = np.concatenate((np.full(len(waiting), -1), places))
            full = len(images) // self.batch_size * self.batch_size
            for end in range(self.batch_size, full + 1, self.batch_size):
                batches.append((int(places[end - 1]), images[end - self.batch_size : end]))
            left[group] = images[full:]
        return [batch for _, batch in sorted(batches, key=lambda item: item[0])]


class TrainLoader:
    """Iterates over lists of samples, one list per iteration, without end."""

    def __init__(self, dataset: SeededMapDataset, batches: TrainingBatches, num_workers: int = 0) -> None:
        self.batches = batches
        self._loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=num_workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_obey_parent_only,
            generator=torch.Generator(),  # an iterator draws a seed, which must not come from the global generator
        )

    def seek(self, iteration: int) -> None:
        """Make the next iterator begin with the batch of ``iteration``."""
        self.batches.start = iteration

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return iter(self._loader)


def _obey_parent_only(_: int) -> None:
    """In a process of the loader: SIGTERM from the run ends it, SIGTERM from a scheduler to all processes does not.

    The run gets that one too, ends in order, and needs its loader until then.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            continue
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def make_train_loader(
    records: Sequence[dict[str, Any]],
    mapper: Callable[[Any], dict[str, Any]],
    *,
    batch_size: int,
    seed: int,
    num_workers: int = 0,
    aspect_ratio_grouping: bool = True,
    repeat_factors: npt.NDArray[np.floating] | None = None,
) -> TrainLoader:
    """The loader of this process.

    Args:
        records, mapper: of the images, in Detectron2's dataset format; record -> sample.
        batch_size, seed: over all processes; not negative.
        num_workers: processes that load; 0 loads in this one.
        aspect_ratio_grouping: whether wide and tall images stay in batches of their own.
        repeat_factors: see :class:`TrainingBatches`.

    Raises:
        DatasetError: nothing can be learned from the records.
    """
    if isinstance(mapper, (MEInstDatasetMapper, CopyPaste)):
        _require_learnable(records, masks=mapper.mask_size is not None)
    wide = [aspect_ratio_grouping and record["width"] > record["height"] for record in records]
    batches = TrainingBatches(
        groups=np.array(wide, np.int64),
        batch_size=batch_size,
        seed=seed,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        repeat_factors=repeat_factors,
    )
    dataset = SeededMapDataset(DatasetFromList(list(records), copy=False), mapper, seed)
    return TrainLoader(dataset, batches, num_workers)


def _require_learnable(records: Sequence[dict[str, Any]], *, masks: bool) -> None:
    """Raise a DatasetError where nothing can be learned from the annotations, and warn where it is less than half."""
    learnable, unusable = count_learnable(records, masks=masks)
    count = unusable.total()
    why = ", ".join(f"{number:,} {reason}" for reason, number in unusable.most_common())
    every = f"{count + learnable:,} annotations in {len(records):,} images"
    said = f"of {every} {count:,} cannot be learned ({why or 'none'})"
    if not learnable:
        raise DatasetError(f"there is nothing to learn: {said}; run meinst check on the annotation files")
    if count > learnable:
        logging.getLogger(__name__).warning(f"Little can be learned: {said}; meinst check says which.")


def build_mapper(cfg: CfgNode, records: Sequence[dict[str, Any]]) -> MEInstDatasetMapper | CopyPaste:
    """The mapper of a config, which pastes objects of other records where ``INPUT.COPY_PASTE`` asks for it.

    Raises:
        ValueError: an augmentation cannot be made as the config says.
    """
    mapper, prob = MEInstDatasetMapper(cfg), cfg.INPUT.COPY_PASTE.PROB
    return CopyPaste(mapper, records, prob) if prob else mapper


def build_train_loader(cfg: CfgNode, mapper: Callable[[Any], dict[str, Any]] | None = None) -> TrainLoader:
    """The loader of ``DATASETS.TRAIN``; ``SEED`` must not be negative.

    Reads DATASETS, DATALOADER, SOLVER.IMS_PER_BATCH, SEED, and what :class:`~meinst_d2.data.mapper.MEInstDatasetMapper`
    reads, which is the ``mapper`` (record -> sample) by default.
    """
    records = training_records(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    check_choices(cfg)
    # Workers would copy a list, page by page, as they count references to its objects.
    shared = DatasetFromList(list(records), copy=False) if cfg.INPUT.COPY_PASTE.PROB else records
    repeat_factors = None
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        repeat_factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        ).numpy()
    return make_train_loader(
        records,
        mapper or build_mapper(cfg, shared),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=cfg.SEED,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        repeat_factors=repeat_factors,
    )
