from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from frs.interrupts import signals_deferred


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_comes_inside_is_delivered_at_the_end_each_once() -> None:
    heard: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: heard.append(number))
    with signals_deferred():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert heard == []
    assert heard == [signal.SIGTERM, signal.SIGINT]


def test_a_signal_that_is_ignored_hides_no_other() -> None:
    """As under nohup, or behind an & in a script."""
    heard: list[int] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    with signals_deferred():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert heard == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_what_torch_raises_of_a_dead_worker_waits_too() -> None:
    def raises(_number: int, _frame: object) -> None:
        raise RuntimeError("a worker has died")

    signal.signal(signal.SIGCHLD, raises)
    done: list[str] = []

    def work() -> None:
        with signals_deferred():
            os.kill(os.getpid(), signal.SIGCHLD)
            done.append("to its end")

    with pytest.raises(RuntimeError, match="a worker has died"):
        work()
    assert done


def test_outside_the_main_thread_nothing_is_deferred_and_nothing_fails() -> None:
    entered: list[bool] = []

    def work() -> None:
        with signals_deferred():
            entered.append(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [True]
