"""Collecting samples in the background."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from time import perf_counter_ns
from typing import Protocol

from frs.edge.telemetry.sample import FIELDS, Sample, without


class Sampler(ABC):
    """Collects samples from `__enter__` to `__exit__`; `samples` and `missing` may be asked at any time, also afterwards."""

    source: str

    def __init__(self) -> None:
        self._samples: list[Sample] = []

    def samples(self) -> list[Sample]:
        """Those so far, oldest first, in a list of the caller's own."""
        return list(self._samples)

    @property
    def missing(self) -> dict[str, str]:
        """Field of Sample -> why it is not there. All fields, where reading the machine failed as a whole or stopped early."""
        if trouble := self._trouble():
            return dict.fromkeys(FIELDS, trouble)
        samples = self.samples()
        return {name: self._reason(name) for name in FIELDS if without(samples, name)}

    @abstractmethod
    def __enter__(self) -> Sampler: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def _trouble(self) -> str | None:
        """Why there are no more samples, though there should be."""

    @abstractmethod
    def _reason(self, field: str) -> str:
        """Why no sample has this field."""


class Source(Protocol):
    """What is polled. `read` may raise anything; `missing`: field -> reason, filled as it is found out."""

    name: str
    missing: dict[str, str]

    def read(self, time_ns: int) -> Sample: ...

    def close(self) -> None: ...


class PollingSampler(Sampler):
    """Reads a source in a thread, once every interval_s. Enter it once."""

    def __init__(self, source: Source, interval_s: float) -> None:
        super().__init__()
        self.source = source.name
        self._polled = source
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._poll, name="telemetry", daemon=True)

    def __enter__(self) -> PollingSampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._polled.close()

    def _poll(self) -> None:
        try:
            self._polled.read(perf_counter_ns())  # load is told by the difference from the reading before
            while not self._stop.wait(self._interval_s):
                self._samples.append(self._polled.read(perf_counter_ns()))
        except Exception as error:  # whatever breaks the telemetry must not break what is measured
            self._failure = f"{self.source} failed: {type(error).__name__}: {error}"

    def _trouble(self) -> str | None:
        return self._failure

    def _reason(self, field: str) -> str:
        return self._polled.missing.get(field, f"{self.source} gave no sample of it")
