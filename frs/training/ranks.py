"""A training in several processes, one a GPU: started by torch's elastic launcher, ended together whatever happens.

The process that starts them, the runner, trains nothing: it shows what the first rank tells it, and passes signals on.
"""

from __future__ import annotations

import _thread
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, get_start_method, resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Literal, NoReturn, TypeVar

import torch
from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from frs.errors import TrainingError
from frs.training.loop import Watcher
from frs.training.rank import SIGNALS, Rank, main

T = TypeVar("T")

_MEETING = 600
"""Seconds that a machine waits for the others."""
_PARTING = 300
"""Seconds that ranks have, after a signal, to end their step and to write a checkpoint."""
_TICK = 0.1
"""Seconds after which the listener looks whether it is to end."""
_CONTINUES = "the same command continues"


@dataclass(frozen=True)
class Ranks:
    """How many processes, and where.

    kind: "cpu" or "cuda"; devices: processes on this machine; nodes: machines; rendezvous: host:port where they meet, of the
    first one; name: the work's, the same on each machine.
    """

    kind: str
    devices: int
    nodes: int
    rendezvous: str | None
    name: str


def count_devices(devices: int | Literal["auto"], kind: str) -> int:
    """Processes for this machine: as many as asked for; "auto": one for each GPU that torch sees, one on a CPU.

    Raises TrainingError when there are fewer GPUs than asked for.
    """
    if kind != "cuda":
        return 1 if devices == "auto" else devices
    seen = torch.cuda.device_count()
    if devices != "auto" and devices > seen:
        raise TrainingError(f"train.devices is {devices}, but torch sees {seen} GPUs here; lower it, or use auto")
    return seen if devices == "auto" else devices


def launch(work: Callable[[Rank], T], ranks: Ranks, watcher: Watcher) -> T:
    """Have every rank do `work`, which must be picklable, and return what the first one of this machine returns.

    For the main thread. SIGINT and SIGTERM end all ranks and then reach the handlers that were in force. An error of one rank
    ends the others and is raised here. Raises TrainingError when a rank dies, and when the machines do not meet. No process
    outlives the call.
    """
    one_machine = ranks.nodes == 1
    config = LaunchConfig(
        min_nodes=ranks.nodes,
        max_nodes=ranks.nodes,
        nproc_per_node=ranks.devices,
        logs_specs=_NoLogs(),
        run_id=ranks.name,
        rdzv_backend="c10d",
        rdzv_configs={"join_timeout": _MEETING, "read_timeout": _MEETING},
        rdzv_endpoint="localhost:0" if one_machine else str(ranks.rendezvous),
        local_addr="127.0.0.1" if one_machine else None,
        max_restarts=0,
        signals_to_handle="",  # the launcher's handler raises at every signal, and at the second leaves processes behind
        shutdown_timeout=_PARTING,
    )
    spawn = get_context("spawn")
    pipes = [spawn.Pipe(duplex=False) for _ in range(ranks.devices)]
    listener = _Listener(pipes, watcher)
    before = set(active_children())
    try:
        with listener, _one_signal(), _quiet():
            try:
                writing = [theirs for _, theirs in pipes]
                ours = ranks.kind, one_machine, os.getpid(), get_start_method()
                found = elastic_launch(config, main)(work, *ours, writing)
            finally:
                for child in set(active_children()) - before:  # a signal came while they were started
                    child.kill()
                    child.join()
    except ChildFailedError as failed:
        _explain(failed, listener.last_words, ranks)
    except SignalException as came:
        if listener.error is not None:
            raise listener.error from None
        signal.raise_signal(came.sigval)
        raise TrainingError(f"the training was told to stop ({came.sigval.name}); {_CONTINUES}") from None
    except RendezvousError as error:
        raise TrainingError(
            f"the {ranks.nodes} machines of train.nodes did not meet at {ranks.rendezvous} ({error}); give the same command "
            "on each; train.rendezvous is a port of the first one that the others reach"
        ) from None
    first: T = found[min(found)]
    return first


class _Listener(threading.Thread):
    """Passes on what the ranks tell, and keeps their last words, (rank on this machine, kind, content), as they come."""

    def __init__(self, pipes: list[tuple[Connection, Connection]], watcher: Watcher) -> None:
        super().__init__(daemon=True)
        self.last_words: list[tuple[int, str, Any]] = []
        self.error: BaseException | None = None
        self._pipes = pipes
        self._watcher = watcher
        self._ending = False

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        """When the ranks have ended."""
        for pipes in self._pipes:
            pipes[1].close()  # half a message of a rank that was killed has its end now
        self._ending = True
        self.join()
        for pipes in self._pipes:
            pipes[0].close()

    def run(self) -> None:
        number = {ours: i for i, (ours, _) in enumerate(self._pipes)}
        while number:
            ready = wait(list(number), _TICK)
            if not ready and self._ending:
                return
            for pipe in ready:
                assert isinstance(pipe, Connection)
                try:
                    kind, content = pipe.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    del number[pipe]
                    continue
                self._take(number[pipe], kind, content)

    def _take(self, number: int, kind: str, content: Any) -> None:
        if kind not in ("update", "log"):
            self.last_words.append((number, kind, content))
        elif self.error is None:
            try:
                if kind == "log":
                    self._watcher.log(content)
                else:
                    done, total, figures = content
                    self._watcher.update(done, total, **figures)
            except BaseException as error:  # as in one process, it ends the training
                self.error = error
                _thread.interrupt_main(signal.SIGTERM)


class _RankTraceback(Exception):
    """Where in a rank an error came from."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


def _explain(failed: ChildFailedError, words: list[tuple[int, str, Any]], ranks: Ranks) -> NoReturn:
    """Raise what ended the training: an error that a rank told, or what became of the one that ended first."""
    number, failure = failed.get_first_failure()
    who = f"rank {number} of {ranks.devices * ranks.nodes}"
    own = [kind for local, kind, _ in words if local == failure.local_rank]
    if failure.exitcode < 0 and not own:
        name = signal.Signals(-failure.exitcode).name
        raise TrainingError(
            f"{who} (process {failure.pid}) was killed by {name}; if memory ran out, lower train.batch or train.workers; "
            f"{_CONTINUES}"
        ) from None
    for _, kind, content in words:
        if kind == "error":
            error, trace = content
            raise error from _RankTraceback(trace)
    for local, kind, content in words:
        if local == failure.local_rank and kind == "stopped":
            raise TrainingError(f"{who} was told to stop ({signal.Signals(content).name}); {_CONTINUES}") from None
        if local == failure.local_rank:
            raise TrainingError(
                f"{who} lost its connection to the others ({content[0]}); if none of them says why, look at the network "
                f"between the machines; {_CONTINUES}"
            ) from None
    raise TrainingError(f"{who} (process {failure.pid}) ended with {failure.exitcode} and said no more; {_CONTINUES}")


@contextmanager
def _one_signal() -> Iterator[None]:
    """SIGINT and SIGTERM raise in the launcher once; what comes after does not disturb the ending.

    They are blocked in this thread, the ranks' parent, and so in a rank until it can answer; the listener's thread has them
    open, and Python still calls the handler here.
    """
    came: list[int] = []

    def raise_once(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise SignalException("", signal.Signals(number))

    heard = {number: handler for number in SIGNALS if (handler := signal.getsignal(number)) is not signal.SIG_IGN}
    resource_tracker.ensure_running()  # it would open them again when the first rank starts it
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    for number in heard:
        signal.signal(number, raise_once)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _NoLogs(LogsSpecs):
    """What a rank prints goes where the runner's own prints go; no files, and no threads that follow them."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        here = dict.fromkeys(envs, "")
        return LogsDest(here, here, error_files=dict.fromkeys(envs, os.devnull))

    @property
    def root_log_dir(self) -> str:
        return os.devnull


@contextmanager
def _quiet() -> Iterator[None]:
    """The launcher logs each rank's end with a traceback; what there is to say of it is said once, by `launch`."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
