"""Training batches, in an order and with augmentations that depend on nothing but (seed, epoch, image)."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from torch.utils.data import DataLoader

from frs.data.coco import CocoDataset
from frs.data.order import Order
from frs.data.resize import ShortestEdge
from frs.data.samples import Batch, Collate, Sample, Samples
from frs.data.transforms import Augment
from frs.errors import DataError, TrainingError
from frs.interrupts import signals_deferred

__all__ = ["Batch", "TrainingLoader", "worker_error"]

CACHE_BYTES = 2**30
"""A training set that fits in this, once for each process that loads it, is decoded once and kept."""

_TORN = (ConnectionError, EOFError, pickle.UnpicklingError)
"""What remains of a batch whose process has died while it handed it over."""

_PATIENCE = 300
"""Seconds until a process that does not answer is given up."""

_DIED = "a process that loads images has died ({}); if memory ran out, lower train.workers; the same command continues"


class TrainingLoader:
    """Augmented batches. Any (epoch, step) gives the same bytes whatever ran before, in any process.

    height, width: of the letterbox that images are brought to; shortest_edge: takes its place; then the sides of a batch are
    multiples of 32, and its images upright or lying, all of them but in an epoch's last steps. drop_empty: leave out images
    without an object. workers: processes that prepare batches; 0: this one. pin: into memory that a GPU copies from. rank,
    ranks: of each batch this loader gives every ranks-th image, from the rank-th on, so that the n-th images of all ranks
    stand side by side in it. The last batch of an epoch is dropped if it is not full. Raises DataError when there are fewer
    images than one batch takes, TrainingError when the ranks cannot share a batch equally.
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
        shortest_edge: ShortestEdge | None = None,
        pin: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch % ranks:
            raise TrainingError(
                f"train.batch is {batch}, which {ranks} processes cannot share equally; make it a multiple of {ranks}, or "
                "change train.devices"
            )
        images = [image for image in dataset.images if not drop_empty or not image.crowd.all()]
        if len(images) < batch:
            raise DataError(f"train.batch is {batch}, but there are only {len(images)} images to train on; lower it")
        self.samples = Samples(
            dataset,
            images,
            height=height,
            width=width,
            shortest_edge=shortest_edge,
            seed=seed,
            augment=augment,
            keep_bytes=CACHE_BYTES // max(1, workers),  # each process has its own
        )
        upright = [shortest_edge is not None and image.width < image.height for image in images]
        self.order = Order(tuple(upright), batch, seed, rank, ranks)
        self.collate = Collate() if shortest_edge is None else Collate(multiple=32, sized=True)
        self.workers = workers
        self.pin = pin
        self.steps_per_epoch = self.order.steps
        self._stream: Generator[Batch | DataError, None, None] | None = None
        self._at = (0, 0)
        """The (epoch, step) that the stream gives next."""

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_step` on. The processes go on to the next epoch, until `close`."""
        for step in range(start_step, self.steps_per_epoch):
            if self._stream is None or self._at != (epoch, step):
                self.close()
                self._stream = _handed_over(self._loader(epoch, step))
            try:
                made = next(self._stream)
            except BaseException:
                self.close()
                raise
            self._at = (epoch, step + 1) if step + 1 < self.steps_per_epoch else (epoch + 1, 0)
            if isinstance(made, DataError):
                raise made
            yield made

    def close(self) -> None:
        """End the processes; `epoch` starts them again."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _loader(self, epoch: int, step: int) -> DataLoader[Sample | DataError]:
        return DataLoader(
            self.samples,
            batch_sampler=self.order.batches(epoch, step),
            collate_fn=self.collate,
            num_workers=self.workers,
            pin_memory=self.pin,
            worker_init_fn=_leave_quietly,
            timeout=_PATIENCE if self.workers else 0,
        )


def _handed_over(loader: DataLoader[Sample | DataError]) -> Generator[Batch | DataError, None, None]:
    """The batches. Of a worker that died with one in its hands there is nothing left but a torn connection."""
    with (
        signals_deferred()
    ):  # one that came while a process forks would be swallowed, and its half made workers waited for
        batches = iter(loader)
    try:
        with _pinning_in_silence():
            while True:
                try:
                    made = next(batches)
                except StopIteration:
                    return
                except _TORN as error:
                    raise TrainingError(_DIED.format(type(error).__name__)) from None
                yield made
    finally:
        # Left to its destructor, torch would print the traceback of a worker that it finds dead.
        with signals_deferred(), suppress(RuntimeError):
            getattr(batches, "_shutdown_workers", lambda: None)()


@contextmanager
def _pinning_in_silence() -> Iterator[None]:
    """torch's thread that pins the batches ends with the traceback of a torn connection; `worker_error` has the words."""
    before = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        pinning = raised.thread is not None and "_pin_memory_loop" in raised.thread.name
        if not (pinning and isinstance(raised.exc_value, _TORN)):
            before(raised)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


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
    if "Pin memory thread exited" in text:
        return TrainingError(_DIED.format("its connection was torn"))
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
