"""Latency, memory and energy of exported files, measured so that the figures can be believed.

Every artifact is opened in a fresh process. The processes work one at a time, in short blocks that alternate between the
artifacts, so that a machine that warms up or is disturbed is as slow for the one as for the other. All have the same number
of blocks, however slow they are: each is spread over the whole measurement. Files of one runtime and batch are measured
together, so that no more processes hold a GPU's memory at a time than must be compared.

A run is what a user waits for: from the decoded photograph to boxes in its pixels. A session is synchronised with its
device on both sides (`Session.run_split`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from time import perf_counter_ns, process_time_ns, sleep
from typing import IO, Any

import numpy as np

from frs.edge.child import child_environment
from frs.edge.image import load_image
from frs.edge.machine import available_cores
from frs.edge.measured import Artifact, Block, Measured, Run
from frs.edge.profile_row import Beside, profile_row
from frs.edge.telemetry import Sampler, conditions, pick_rail, sampler
from frs.edge.timing import MINIMUM_BLOCKS, WarmUp
from frs.errors import ExportError

__all__ = ["Artifact", "profile_artifacts"]

MINIMUM_RUNS = 20
BLOCK_S = 0.5
IDLE_S = 1.5
PATIENCE_S = 1.0
"""With a sampler, until its first sample."""


def profile_artifacts(
    artifacts: Sequence[Artifact],
    images: Sequence[Path],
    *,
    runs: int = 200,
    seconds: float = 3.0,
    threads: int | None = None,
    batches: Sequence[int] | None = None,
    progress: Callable[[float, float], None] | None = None,
    telemetry: Callable[[], AbstractContextManager[Sampler]] = sampler,
) -> list[dict[str, Any]]:
    """One row of the report's `profiles` for each artifact and batch, as `frs.edge.profile_row` describes it.

    images: cycled through, decoded beforehand. runs, seconds: each artifact is timed for at least so many runs and at least
    so long; the 99th percentile of n runs is seen n / 100 times, so that with fewer than a few hundred it says little more
    than the maximum. threads: of an operator of ONNX Runtime; None takes every core. batches: images of a call; None: the
    batch of the file, or 1 where it is open. telemetry: what is read beside the measurement.

    Raises DataError for an image, ExportError for a process that fails, with what it wrote.
    """
    if runs < MINIMUM_RUNS:
        raise ValueError(f"{runs} runs: fewer than {MINIMUM_RUNS} say nothing about a median")
    groups = [
        [artifact for artifact in artifacts if artifact.runtime == runtime]
        for runtime in dict.fromkeys(artifact.runtime for artifact in artifacts)
    ]
    asked = [(group, batch) for group in groups for batch in (batches or (None,))]
    measured: list[Measured] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for i, image in enumerate(images):
            np.save(folder / f"{i}.npy", load_image(image))
        beside = stack.enter_context(telemetry())
        idle = _idle(beside)
        for done, (group, batch) in enumerate(asked):
            request = {"images": len(images), "threads": threads or available_cores(), "batch": batch}

            def report(part: float, done: int = done) -> None:
                if progress is not None:
                    progress(done + part, len(asked))

            measured += _measure_in_turn(group, folder, request, runs, seconds, report)
        surroundings = Beside(beside.samples(), beside.source, dict(beside.missing), conditions(), idle)
    order = {artifact: place for place, artifact in enumerate(artifacts)}
    measured.sort(key=lambda each: order[each.artifact])
    return [profile_row(each, surroundings) for each in measured]


def _idle(beside: Sampler) -> tuple[int, int] | None:
    """The window in which nothing of ours runs, where there is a power rail to be read in it."""
    asked = perf_counter_ns()
    while not (samples := beside.samples()) and perf_counter_ns() - asked < PATIENCE_S * 1e9:
        sleep(0.05)
    if pick_rail(samples)[0] is None:
        return None
    start = perf_counter_ns()
    sleep(IDLE_S)
    return start, perf_counter_ns()


def _measure_in_turn(
    artifacts: Sequence[Artifact],
    folder: Path,
    request: dict[str, Any],
    runs: int,
    seconds: float,
    report: Callable[[float], None],
) -> list[Measured]:
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(artifact, folder, request)) for artifact in artifacts]
        for worker in workers:
            worker.open()
        fastest = min(worker.warm_up.seconds / worker.warm_up.runs for worker in workers)
        rounds = max(MINIMUM_BLOCKS, round(max(seconds, runs * fastest) / BLOCK_S))
        for done in range(rounds):
            for place, worker in enumerate(workers):
                report((done + place / len(workers)) / rounds)
                worker.block(runs=-(-runs // rounds), seconds=seconds / rounds)
        report(1.0)
        return [worker.measured() for worker in workers]


class _Worker:
    """The process of one artifact: a line of JSON asks, a line of JSON answers."""

    def __init__(self, artifact: Artifact, folder: Path, request: dict[str, Any]) -> None:
        self.artifact = artifact
        self.threads: int = request["threads"]
        self.blocks: list[Block] = []
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-m", "frs.edge._latency_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=folder,  # so that nothing in the user's folder is imported
            env=child_environment(),
            text=True,
        )
        try:
            self.ask(**request, runtime=artifact.runtime, path=str(artifact.path.resolve()))
        except BaseException:
            self.__exit__()
            raise

    def open(self) -> None:
        """The session, and its warm-up."""
        start = perf_counter_ns()
        self.opened = self.ask(do="open")
        self.warm_up = WarmUp(**self.ask(do="warm up"))
        self.opened_ns = start, perf_counter_ns()

    def block(self, runs: int, seconds: float) -> None:
        used = process_time_ns()
        answer = self.ask(do="block", runs=runs, seconds=seconds)
        used = process_time_ns() - used
        self.blocks.append(
            Block(
                [Run(*run) for run in answer["runs"]],
                answer["start_ns"],
                answer["end_ns"],
                answer["cpu_ns"] + used,
            )
        )

    def measured(self) -> Measured:
        return Measured(
            self.artifact,
            threads=self.threads if self.artifact.runtime == "onnxruntime" else None,
            opened_ns=self.opened_ns,
            warm_up=self.warm_up,
            blocks=self.blocks,
            **self.opened,
            **self.ask(do="memory"),
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):  # nothing, or half of one: it was killed while it wrote
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
