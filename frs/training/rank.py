"""One of several processes that train together: how it meets the others, hears signals, and tells how it ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, set_start_method
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from frs.data.loader import TrainingLoader
from frs.distributed import local_rank, rank
from frs.errors import FrsError
from frs.interrupts import end_with
from frs.training.device import Device
from frs.training.loop import Epoch, train
from frs.training.objective import Objective
from frs.training.recipe import Recipe

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SYMPTOM = 1.0
"""Seconds that a rank with an error which may follow from another rank's end waits, so that the other is seen to end first."""
_POLL = 0.05
"""Seconds between two looks at whether the first rank is done."""


class Stopped(BaseException):
    """A signal came to one of the ranks; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Rank:
    """This process as one of several, and the Watcher of its work: what it is told reaches the runner's, from one rank a
    machine.

    A signal ends the work at once; in a training it waits until all ranks have ended the same step.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._store: Any  # torch.distributed.Store, of which torch tells no type
        self._in_step = False
        self._signal = 0
        self._measured = 0

    def update(self, done: float, total: float, **figures: float | str) -> None:
        self._tell("update", (done, total, figures))
        if self._in_step:
            came = torch.tensor(self._signal)
            distributed.all_reduce(came, distributed.ReduceOp.MAX)
            if came:
                raise Stopped(int(came))

    def log(self, message: str) -> None:
        self._tell("log", message)

    def train(
        self,
        objective: Objective,
        loader: TrainingLoader,
        recipe: Recipe,
        device: Device,
        *,
        scratch: Path,
        evaluate: Callable[[], float | None],
    ) -> list[Epoch]:
        """`frs.training.train`; the first rank alone measures AP, while the others wait, however long it takes."""
        with self._signals_wait(True):
            return train(
                objective,
                loader,
                recipe,
                device,
                scratch=scratch,
                watcher=self,
                evaluate=lambda: self._of_first(evaluate),
            )

    def listen(self) -> None:
        """Hear the signals that the runner passes on; one that is ignored here (nohup) stays so."""
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the runner had them blocked while this process began

    @contextmanager
    def group(self, kind: str, *, one_machine: bool) -> Iterator[None]:
        """The process group of all ranks, with NCCL between GPUs, gloo between CPUs. After an error it is left to the exit."""
        if one_machine and sys.platform == "linux":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        self._store, number, count = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        distributed.init_process_group(backend, store=self._store, rank=number, world_size=count)
        yield
        distributed.destroy_process_group()

    def leave(self, kind: Literal["error", "lost", "stopped"], content: Any) -> NoReturn:
        """Tell the runner how this rank ends, and end."""
        self._deaf()
        with suppress(OSError):  # it is gone already
            try:
                self._pipe.send((kind, content))
            except (TypeError, AttributeError, ValueError) as error:  # what was raised cannot be pickled
                self._pipe.send((kind, (RuntimeError(f"{content[0]!r} ({error})"), content[1])))
        if not (kind == "stopped" or isinstance(content[0], (FrsError, OSError))):
            time.sleep(_SYMPTOM)
        for child in active_children():  # those that load images
            child.kill()
        os._exit(1)  # an orderly exit may wait for a GPU that waits for another rank

    def returned(self) -> None:
        """The work is done; a signal that came too late to end it ends the rest."""
        self._deaf()
        if self._signal:
            self.leave("stopped", self._signal)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        if not self._in_step:
            raise Stopped(number)

    def _deaf(self) -> None:
        """From here on a signal ends the process, whatever it is blocked in."""
        for number in SIGNALS:
            if signal.getsignal(number) == self._hear:
                signal.signal(number, signal.SIG_DFL)

    def _tell(self, kind: str, content: Any) -> None:
        if local_rank() == 0:
            self._pipe.send((kind, content))

    @contextmanager
    def _signals_wait(self, wait: bool) -> Iterator[None]:
        before, self._in_step = self._in_step, wait
        try:
            if self._signal and not wait:
                raise Stopped(self._signal)
            yield
        finally:
            self._in_step = before

    def _of_first(self, measure: Callable[[], float | None]) -> float | None:
        """The others look now and then whether it is done: a collective would time out, and hear no signal."""
        self._measured += 1
        key = f"measured/{self._measured}"
        with self._signals_wait(False):
            if rank() == 0:
                self._store.set(key, json.dumps(measure()))
            while not self._store.check([key]):
                time.sleep(_POLL)
            found: float | None = json.loads(self._store.get(key))
        return found


def main(
    work: Callable[[Rank], T], kind: str, one_machine: bool, runner: int, workers: str, pipes: list[Connection]
) -> T:
    """What each process does: the work, whose result it returns; or it exits with 1 after a last word.

    workers: how processes that load images are started, as in the runner; a spawned process would spawn them, which takes
    seconds at each epoch.
    """
    end_with(runner)
    set_start_method(workers, force=True)
    this = Rank(pipes[int(os.environ["LOCAL_RANK"])])
    try:
        this.listen()
        with this.group(kind, one_machine=one_machine):
            result = work(this)
        this.returned()
    except Stopped as stopped:
        this.leave("stopped", stopped.number)
    except Exception as error:
        this.leave("lost" if _is_lost(error) else "error", (error, traceback.format_exc()))
    return result


def _is_lost(error: Exception) -> bool:
    """Whether it says no more than that another rank has ended."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
