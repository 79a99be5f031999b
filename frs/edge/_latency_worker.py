"""The process in which one artifact is timed; `frs.edge.latency` starts it and says when to do what.

A line of JSON asks, a line of JSON answers. The first describes the work: {"runtime", "path", "threads", "batch", "images"}.
After it {"do": "open"} opens the session and answers once, {"do": "warm up"} runs until the times are stable, {"do": "block",
"runs": n, "seconds": s} answers with the nanoseconds of each run's parts, {"do": "memory"} with what was held: of the
process's memory at most, of the device's when the warm-up was over.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import perf_counter_ns, process_time_ns
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from frs.edge.image import letterbox_batch
from frs.edge.measured import Run
from frs.edge.predictor import Session
from frs.edge.sessions import open_session
from frs.edge.sidecar import Sidecar
from frs.edge.timing import warm_up
from frs.edge.trt import LIBRARIES
from frs.errors import ExportError, FrsError

BLOCK_WARMUP = 2


def main(commands: TextIO, answers: TextIO) -> None:
    def reply(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    request = json.loads(commands.readline())
    images = [np.load(f"{i}.npy") for i in range(request["images"])]
    _import_runtime(Path(request["path"]))
    reply({})
    timed = _Timed(request, images)
    for line in commands:
        command = json.loads(line)
        match command["do"]:
            case "open":
                reply(timed.open())
            case "warm up":
                reply(timed.warm_up())
            case "block":
                reply(timed.block(command["runs"], command["seconds"]))
            case "memory":
                reply(timed.memory())


class _Timed:
    """An artifact at its work."""

    session: Session
    device_mb: float | None

    def __init__(self, request: dict[str, Any], images: list[npt.NDArray[np.uint8]]) -> None:
        self.request, self.images, self.done = request, images, 0
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far was the imports'
            self.before = _status("VmRSS")
        except OSError:  # a peak that may be the imports' is not the model's
            self.before = None

    def open(self) -> dict[str, Any]:
        start = perf_counter_ns()
        self.session = open_session(Path(self.request["path"]), threads=self.request["threads"])
        self.batch = self.request["batch"] or self.session.batch or 1
        if self.session.batch not in (None, self.batch):
            raise ExportError(
                f"{self.session.path}: exported for batches of {self.session.batch}, cannot be timed with {self.batch}"
            )
        self.run()
        cold = perf_counter_ns() - start
        return {"provider": self.session.provider, "batch": self.batch, "cold_start_ms": round(cold / 1e6, 2)}

    def warm_up(self) -> dict[str, Any]:
        told = warm_up(lambda: self.run().session)
        # Now: before the processes that are opened after this one take their part of the device.
        self.device_mb = self.session.device_memory_mb
        return asdict(told)

    def run(self) -> Run:
        """The next images, from decoded photographs to boxes in their pixels."""
        info = self.session.info
        chosen = [self.images[(self.done + i) % len(self.images)] for i in range(self.batch)]
        self.done += self.batch
        start = perf_counter_ns()
        pixels, mappings = letterbox_batch(chosen, info.height, info.width)
        prepared = perf_counter_ns()
        (boxes, _, _, counts), split = self.session.run_split(pixels)
        inferred = perf_counter_ns()
        for i, mapping in enumerate(mappings):
            mapping.to_original(boxes[i, : counts[i]])
        finished = perf_counter_ns()
        return Run(
            total=finished - start,
            preprocess=prepared - start,
            session=inferred - prepared,
            copy_in=split.copy_in,
            infer=split.infer,
            copy_out=split.copy_out,
            postprocess=finished - inferred,
            gpu=split.gpu,
        )

    def block(self, runs: int, seconds: float) -> dict[str, Any]:
        """At least so many runs and so many seconds; the first few are not counted: the caches were another's."""
        for _ in range(BLOCK_WARMUP):
            self.run()
        timed: list[Run] = []
        used, start = process_time_ns(), perf_counter_ns()
        while len(timed) < runs or perf_counter_ns() - start < seconds * 1e9:
            timed.append(self.run())
        end = perf_counter_ns()
        return {"runs": timed, "start_ns": start, "end_ns": end, "cpu_ns": process_time_ns() - used}

    def memory(self) -> dict[str, Any]:
        peak = _status("VmHWM")
        held = None if peak is None or self.before is None else round((peak - self.before) * 1024 / 1e6, 1)
        return {"peak_mb": held, "device_mb": self.device_mb}


def _import_runtime(path: Path) -> None:
    """Its own start and memory are not the model's. What is missing the session says better."""
    names = ("onnxruntime",) if path.suffix == ".onnx" else (Sidecar.of(path).builder, "cuda.bindings.runtime")
    for name in {"onnxruntime", *LIBRARIES, "cuda.bindings.runtime"}.intersection(names):
        with suppress(ImportError, OSError):
            importlib.import_module(name)


def _status(key: str) -> int | None:
    """A line of /proc/self/status, in units of 1,024 bytes; None where there is no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[key].split()[0]) if key in lines else None


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not end up among the answers
    try:
        main(sys.stdin, channel)
    except FrsError as error:
        sys.exit(str(error))
