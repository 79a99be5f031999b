"""Training batches, in an order and with augmentations that depend on nothing but (seed, epoch, image)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frs.data.coco import CocoDataset, CocoImage
from frs.data.transforms import Augment
from frs.detectors.base import Targets
from frs.edge.image import Letterbox, letterbox, to_nchw
from frs.errors import DataError

CACHE_BYTES = 2**30
"""A training set that fits in this at its input size is decoded once and kept."""


@dataclass(frozen=True)
class Batch:
    """images: (B, 3, H, W) uint8 RGB; targets: their objects; image_ids: of the annotations, for messages."""

    images: Tensor
    targets: Targets
    image_ids: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """One augmented image: pixels (H, W, 3), boxes (n, 4) xyxy in its pixels, labels (n,), crowd (n,)."""

    image: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    image_id: int


class TrainingLoader:
    """Augmented, letterboxed batches. Any (epoch, step) gives the same bytes whatever ran before, in any process.

    drop_empty: leave out images without an object. workers: processes that prepare batches; 0: this one. The last batch
    of an epoch is dropped if it is not full. Raises DataError when there are fewer images than one batch takes.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        *,
        height: int,
        width: int,
        batch: int,
        seed: int,
        augment: Augment,
        drop_empty: bool,
        workers: int,
    ) -> None:
        images = [image for image in dataset.images if not drop_empty or not image.crowd.all()]
        if len(images) < batch:
            raise DataError(f"train.batch is {batch}, but there are only {len(images)} images to train on; lower it")
        self.samples = _Samples(dataset, images, height, width, seed, augment)
        self.batch = batch
        self.seed = seed
        self.workers = workers
        self.steps_per_epoch = len(images) // batch

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.samples))
        batches = [
            [(epoch, int(index)) for index in order[step * self.batch : (step + 1) * self.batch]]
            for step in range(start_step, self.steps_per_epoch)
        ]
        # timeout: a worker that hangs is an error; one that dies is reported by torch itself.
        for made in DataLoader(
            self.samples,
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=self.workers,
            timeout=300 if self.workers else 0,
        ):
            if isinstance(made, DataError):
                raise made
            yield made


class _Samples(Dataset["Sample | DataError"]):
    """Indexed by (epoch, number of the image).

    An error is returned: raised in a worker, it would arrive with the worker's traceback for a message.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        images: list[CocoImage],
        height: int,
        width: int,
        seed: int,
        augment: Augment,
    ) -> None:
        self.dataset = dataset
        self.images = images
        self.height, self.width = height, width
        self.seed = seed
        self.augment = augment
        self.cache: dict[int, tuple[npt.NDArray[np.uint8], Letterbox]] = {}
        self.cached = len(images) * height * width * 3 <= CACHE_BYTES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Sample | DataError:
        epoch, index = key
        record = self.images[index]
        try:
            pixels, mapping = self._pixels(index)
        except DataError as error:
            return error
        boxes = mapping.to_input(record.boxes)
        generator = np.random.default_rng((self.seed, epoch, index))
        pixels, boxes, kept = self.augment(pixels, boxes, generator)
        return Sample(pixels, boxes, record.labels[kept], record.crowd[kept], record.id)

    def _pixels(self, index: int) -> tuple[npt.NDArray[np.uint8], Letterbox]:
        found = self.cache.get(index)
        if found is None:
            found = letterbox(self.dataset.load(self.images[index]), self.height, self.width)
            if self.cached:
                self.cache[index] = found
        return found


def _collate(made: list[Sample | DataError]) -> Batch | DataError:
    samples: list[Sample] = []
    for each in made:
        if isinstance(each, DataError):
            return each
        samples.append(each)
    most = max(len(sample.boxes) for sample in samples)
    count = len(samples)
    boxes = torch.zeros(count, most, 4)
    labels = torch.zeros(count, most, dtype=torch.int64)
    valid = torch.zeros(count, most, dtype=torch.bool)
    ignore = torch.zeros(count, most, dtype=torch.bool)
    for i, sample in enumerate(samples):
        n = len(sample.boxes)
        boxes[i, :n] = torch.from_numpy(sample.boxes)
        labels[i, :n] = torch.from_numpy(sample.labels)
        crowd = torch.from_numpy(sample.crowd)
        valid[i, :n], ignore[i, :n] = ~crowd, crowd
    images = torch.from_numpy(to_nchw([sample.image for sample in samples]))
    return Batch(images, Targets(boxes, labels, valid, ignore), tuple(sample.image_id for sample in samples))
