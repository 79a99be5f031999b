"""Latency and memory of exported files, measured so that the figures can be believed.

Every artifact is opened in a fresh process. The processes work one at a time, in short blocks that alternate between the
artifacts, so that a machine that warms up or is disturbed is as slow for the one as for the other. Each block begins with
runs that are not counted: the caches were another's.

A run is what a user waits for: from the decoded photograph to boxes in its pixels.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from frs.edge.image import load_image
from frs.edge.machine import available_cores, cpu_model
from frs.errors import ExportError

STAGES = ("preprocess", "infer", "postprocess")
MINIMUM_RUNS = 20
BLOCK_WARMUP = 2

MISSING = {
    "energy_mj": "no power rail is read on this machine",
    "power_mode": "this machine has no named power modes",
    "clocks": "the clocks of this machine are neither locked nor read",
    "throttled": "throttling is not reported by this machine",
}


@dataclass(frozen=True)
class Artifact:
    """What is to be timed: "student" "fp16" in "onnxruntime", and its file."""

    model: str
    precision: str
    runtime: str
    path: Path


def profile_artifacts(
    artifacts: Sequence[Artifact],
    images: Sequence[Path],
    *,
    runs: int = 200,
    warmup: int = 20,
    block: int = 20,
    threads: int | None = None,
    batch: int = 1,
    progress: Callable[[float, float], None] | None = None,
) -> list[dict[str, Any]]:
    """One entry of the report's `profiles` for each artifact, plus `threads` and `provider`.

    images: cycled through, decoded beforehand. runs: timed runs of each artifact; the 99th percentile of n runs is seen
    n / 100 times, so that with fewer than a few hundred it says little more than the maximum. threads: of an operator;
    None takes every core. Milliseconds are of a whole batch: `latency_ms` end to end, `stages_ms` the median of
    letterboxing, of the session and of bringing boxes back to the photograph. `p50_interval` holds the true median with
    at least 95% confidence whatever the distribution, if runs are independent. `peak_memory_mb`: highest resident memory
    of the process since the session was opened, less what it was before (interpreter, runtime and images are not the
    model's).

    Raises DataError for an image, ExportError for a process that fails, with what it wrote.
    """
    if runs < MINIMUM_RUNS:
        raise ValueError(f"{runs} runs: fewer than {MINIMUM_RUNS} say nothing about a median")
    threads = threads or available_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for i, image in enumerate(images):
            np.save(folder / f"{i}.npy", load_image(image))
        request = {"images": len(images), "threads": threads, "batch": batch, "warmup": warmup}
        workers = [stack.enter_context(_Worker(artifact, folder, request)) for artifact in artifacts]
        timings: list[list[list[int]]] = [[] for _ in artifacts]
        while len(timings[-1]) < runs:
            count = min(block, runs - len(timings[-1]))
            for worker, collected in zip(workers, timings, strict=True):
                collected += worker.ask(run=count)["timings"]
                if progress is not None:
                    progress(sum(map(len, timings)), runs * len(artifacts))
        return [
            _entry(worker, np.array(collected), threads, batch)
            for worker, collected in zip(workers, timings, strict=True)
        ]


def _entry(worker: _Worker, nanoseconds: npt.NDArray[np.int64], threads: int, batch: int) -> dict[str, Any]:
    """nanoseconds: (runs, 3), a column for each stage."""
    artifact, stages = worker.artifact, nanoseconds / 1e6
    total = stages.sum(axis=1)
    peak = worker.ask(peak=True)["peak_mb"]
    missing = dict(MISSING)
    if peak is None:
        missing["peak_memory_mb"] = "this system does not tell a process's peak memory"
    return {
        "model": artifact.model,
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "device": cpu_model(),
        "batch": batch,
        "latency_ms": summarise(total),
        "stages_ms": {name: round(percentile(stages[:, i], 50), 4) for i, name in enumerate(STAGES)},
        "throughput_ips": round(1000 * batch / float(total.mean()), 3),
        "peak_memory_mb": peak,
        "artifact_mb": round(artifact.path.stat().st_size / 1e6, 3),
        **dict.fromkeys(MISSING),
        "missing": missing,
        "threads": threads,
        "provider": worker.ready["provider"],
    }


def summarise(milliseconds: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Percentiles are observed values (the smallest that the given part of the runs does not exceed)."""
    ordered = np.sort(milliseconds)
    low, high = median_interval(len(ordered))
    return {
        "p50": round(percentile(ordered, 50), 4),
        "p50_interval": [round(float(ordered[low]), 4), round(float(ordered[high]), 4)],
        "p90": round(percentile(ordered, 90), 4),
        "p99": round(percentile(ordered, 99), 4),
        "mean": round(float(ordered.mean()), 4),
        "min": round(float(ordered[0]), 4),
        "runs": len(ordered),
    }


def percentile(values: npt.NDArray[np.float64], q: float) -> float:
    return float(np.percentile(values, q, method="inverted_cdf"))


def median_interval(n: int, level: float = 0.95) -> tuple[int, int]:
    """Indices of the order statistics between which the median lies with at least this confidence (n >= 6).

    As many of n independent values lie below the median as heads fall in n throws: the interval leaves out at each end
    the most values for which that binomial tail is at most (1 - level) / 2.
    """
    tail, low = 0.0, -1
    while tail + math.comb(n, low + 1) / 2**n <= (1 - level) / 2:
        low += 1
        tail += math.comb(n, low) / 2**n
    low = max(low, 0)
    return low, n - 1 - low


class _Worker:
    """The process of one artifact: a line of JSON asks, a line of JSON answers."""

    def __init__(self, artifact: Artifact, folder: Path, request: dict[str, Any]) -> None:
        self.artifact = artifact
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        source = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "frs.edge._latency_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=folder,  # so that nothing in the user's folder is imported
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))},
            text=True,
        )
        try:
            self.ready = self.ask(**request, runtime=artifact.runtime, path=str(artifact.path.resolve()))
        except BaseException:
            self.__exit__()
            raise

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise self._death()
        result: dict[str, Any] = json.loads(answer)
        return result

    def _death(self) -> ExportError:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return ExportError(
            f"{self.artifact.path}: the process that times it ended with status {status}"
            + (f": {lines[-1][:500]}" if lines else "")
            + "; try the file with `frs-pipeline predict`"
        )

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            with suppress(BrokenPipeError):  # a question that a dead process left unread
                stream.close()
