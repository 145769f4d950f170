"""Which samples make up training batch number b, as a function of the seed alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Sample = tuple[int, int]
"""An index into the dataset, and the position of the sample in the whole of training."""


class TrainingBatches:
    """An endless sequence of batches, the same for any number of processes and workers.

    Every epoch visits the images in an order drawn from (seed, epoch). Images of different groups (wide and tall) do
    not share a batch; what is left of a group at the end of an epoch goes into its first batch of the next. A batch is
    cut into equal parts, one per process.
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
            repeat_factors: (num_images,) how often an epoch visits each image on average (fractions are drawn anew
                every epoch); None for once.

        Raises:
            ValueError: the processes cannot share a batch equally, or there are no images.
        """
        if batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH = {batch_size} cannot be shared by {world_size} processes: choose a multiple"
            )
        if len(groups) == 0:
            raise ValueError("the training set has no images")
        self.groups = groups
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.repeat_factors = repeat_factors
        self.start = 0

    def __iter__(self) -> Iterator[list[Sample]]:
        """This process's part of every batch from number ``start`` on."""
        share = self.batch_size // self.world_size
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for number, batch in self._global_batches():
            first = number * self.batch_size
            yield [(int(batch[i]), first + i) for i in range(self.batch_size)[mine]]

    def _global_batches(self) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        number = 0
        left = {int(group): np.zeros(0, np.int64) for group in np.unique(self.groups)}
        for epoch in itertools.count():
            for batch in self._batches_of_epoch(self._order(epoch), left):
                if number >= self.start:
                    yield number, batch
                number += 1

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
