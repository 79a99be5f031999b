"""SIGINT and SIGTERM may come at any moment, and so may torch's word of a dead loader process; not every moment bears it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Signals that come inside and have a handler of Python's are delivered at the end, each once, to that handler.

    SIGCHLD is one of them: torch raises from it when a loader process has died. Outside the main thread, to which Python
    delivers signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        if callable(handler := signal.getsignal(number))
    }
    for number in handlers:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for each in dict.fromkeys(came):
        signal.raise_signal(each)  # the first that raises ends it


def end_unattended(silence: float = 60.0) -> None:
    """From now on this process gets SIGTERM when its standard input ends, or is silent for so many seconds.

    For a process that somebody started on another machine: a connection that was closed ends the input, and one that was cut
    says nothing, so that whoever is still there writes something now and then.
    """

    def listen() -> None:
        while select.select([0], [], [], silence)[0] and os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=listen, name="end_unattended", daemon=True).start()


def end_with(parent: int) -> None:
    """On Linux this process is killed when `parent`, which started it, dies; else it would work on, unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
