"""In which order a training takes its images: decided by the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np


@dataclass(frozen=True)
class Order:
    """upright: of each image, whether it is higher than wide; batch: images of a step.

    A batch holds images of one kind, so that little of it is padding, except that what is left of both at the end of an epoch
    is put together (mmdetection's AspectRatioBatchSampler). With images of one kind it is the plain shuffled order. rank,
    ranks: of a batch every ranks-th image is loaded here, from the rank-th on.
    """

    upright: tuple[bool, ...]
    batch: int
    seed: int
    rank: int = 0
    ranks: int = 1

    @property
    def steps(self) -> int:
        """Full batches of an epoch, the same number in each: what two kinds leave is put together."""
        return len(self.upright) // self.batch

    def epoch(self, epoch: int) -> list[list[int]]:
        """The numbers of the images of each batch."""
        batches: list[list[int]] = []
        open_batches: tuple[list[int], list[int]] = ([], [])
        for index in np.random.default_rng((self.seed, epoch)).permutation(len(self.upright)).tolist():
            kind = open_batches[self.upright[index]]
            kind.append(index)
            if len(kind) == self.batch:
                batches.append(kind.copy())
                kind.clear()
        left = [*open_batches[False], *open_batches[True]]
        return [*batches, left[: self.batch]][: self.steps]

    def batches(self, epoch: int, step: int) -> Iterable[list[tuple[int, int]]]:
        """(epoch, image) of every batch from a step on, epoch after epoch without end."""
        return _Endless(self, epoch, step)


@dataclass(frozen=True)
class _Endless:
    order: Order
    first_epoch: int
    first_step: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in count(self.first_epoch):
            start = self.first_step if epoch == self.first_epoch else 0
            for batch in self.order.epoch(epoch)[start:]:
                yield [(epoch, index) for index in batch[self.order.rank :: self.order.ranks]]
