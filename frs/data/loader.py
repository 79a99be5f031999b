"""Training batches, in an order and with augmentations that depend on nothing but (seed, epoch, image)."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from frs.data.coco import CocoDataset, CocoImage
from frs.data.transforms import Augment
from frs.detectors.base import Targets
from frs.edge.image import Letterbox, letterbox, to_nchw
from frs.errors import DataError, TrainingError
from frs.interrupts import signals_deferred

CACHE_BYTES = 2**30
"""A training set that fits in this at its input size is decoded once and kept."""

_PATIENCE = 300
"""Seconds until a process that does not answer is given up."""

_DIED = "a process that loads images has died ({}); if memory ran out, lower train.workers; the same command continues"


@dataclass(frozen=True)
class Batch:
    """images: (B, 3, H, W) uint8 RGB; targets: their objects; image_ids: of the annotations, for messages."""

    images: Tensor
    targets: Targets
    image_ids: tuple[int, ...]

    def split(self, parts: int) -> list[Batch]:
        """Into smaller ones of the same size each, in order; `parts` must divide the number of images."""
        size = len(self.images) // parts
        return [
            Batch(
                self.images[i : i + size],
                Targets(**{name: each[i : i + size] for name, each in vars(self.targets).items()}),
                self.image_ids[i : i + size],
            )
            for i in range(0, len(self.images), size)
        ]


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
        loader = DataLoader(
            self.samples,
            batch_sampler=batches,
            collate_fn=_collate,
            num_workers=self.workers,
            worker_init_fn=_leave_quietly,
            timeout=_PATIENCE if self.workers else 0,
        )
        for made in _handed_over(loader):
            if isinstance(made, DataError):
                raise made
            yield made


def _handed_over(loader: DataLoader[Sample | DataError]) -> Iterator[Batch | DataError]:
    """The batches. Of a worker that died with one in its hands there is nothing left but a torn connection."""
    with (
        signals_deferred()
    ):  # one that came while a process forks would be swallowed, and its half made workers waited for
        batches = iter(loader)
    try:
        while True:
            try:
                made = next(batches)
            except StopIteration:
                return
            except (ConnectionError, EOFError, pickle.UnpicklingError) as error:
                raise TrainingError(_DIED.format(type(error).__name__)) from None
            yield made
    finally:
        # Left to its destructor, torch would print the traceback of a worker that it finds dead.
        with signals_deferred(), suppress(RuntimeError):
            getattr(batches, "_shutdown_workers", lambda: None)()


def _leave_quietly(_worker: int) -> None:
    """A signal to the whole group of processes is for the training to answer; its workers end without a word.

    Signals that wait while the workers are started go to handlers of the training's, which mean nothing here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    sys.excepthook = _unless_left_alone


def _unless_left_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A worker's thread that hands over images may find the training gone before it has its own signal."""
    if not isinstance(error, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)


def worker_error(error: RuntimeError) -> TrainingError | None:
    """What torch says of a dead, hanging or starved loader process, in words for the user; None of any other error."""
    text = str(error)
    if "DataLoader" not in text:
        return None
    if "Bus error" in text or "No space left on device" in text or "shared memory" in text:
        return TrainingError(
            "the shared memory (/dev/shm) through which train.workers hand over their images is full; lower train.workers "
            "(0 needs none), or give the container more (--shm-size=2g); the same command continues"
        )
    if "timed out" in text:
        return TrainingError(
            f"a process that loads images has not answered for {_PATIENCE} s; look at the disk that the images are on, or "
            "set train.workers to 0; the same command continues"
        )
    if "exited unexpectedly" in text or "killed by signal" in text:
        return TrainingError(_DIED.format(text.splitlines()[0].rstrip(". ")))
    return None


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
    if get_worker_info() is not None:
        # Here a full shared memory is an error. Left to the queue, it is one in a thread that nobody hears, and a hang.
        share: Callable[[Tensor], Tensor] = Tensor.share_memory_  # torch has no types for it
        for tensor in (images, boxes, labels, valid, ignore):
            share(tensor)
    return Batch(images, Targets(boxes, labels, valid, ignore), tuple(sample.image_id for sample in samples))
