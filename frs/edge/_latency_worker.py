"""The process in which one artifact is timed; `frs.edge.latency` starts it and says when to run.

The first line opens the session: {"runtime", "path", "threads", "batch", "images", "warmup"}. After it {"run": n} answers
with the nanoseconds of each run's stages, {"peak": true} with the peak memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from frs.edge.image import letterbox, to_nchw
from frs.edge.latency import BLOCK_WARMUP
from frs.errors import ExportError, FrsError

Timings = list[list[int]]


def main(commands: TextIO, answers: TextIO) -> None:
    def reply(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    request = json.loads(commands.readline())
    images = [np.load(f"{i}.npy") for i in range(request["images"])]
    import onnxruntime  # noqa: F401  the runtime's own memory is not the model's

    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far was the imports'
    before = _status("VmRSS")
    run, provider = _open(request, images)
    for _ in range(request["warmup"]):
        run()
    reply(provider=provider)
    for line in commands:
        command = json.loads(line)
        if "run" in command:
            for _ in range(BLOCK_WARMUP):
                run()
            reply(timings=[run() for _ in range(command["run"])])
        else:
            peak = _status("VmHWM")
            reply(peak_mb=None if peak is None or before is None else round((peak - before) * 1024 / 1e6, 1))


def _open(request: dict[str, Any], images: list[npt.NDArray[np.uint8]]) -> tuple[Callable[[], list[int]], str]:
    from frs.edge.ort import OnnxRuntimeSession

    if request["runtime"] != "onnxruntime":
        raise ValueError(f"runtime {request['runtime']!r} cannot be timed")
    session = OnnxRuntimeSession(Path(request["path"]), threads=request["threads"])
    info, batch, done = session.info, request["batch"], 0
    if session.batch not in (None, batch):
        raise ExportError(f"{session.path}: exported for batches of {session.batch}, cannot be timed with {batch}")

    def run() -> list[int]:
        nonlocal done
        chosen = [images[(done + i) % len(images)] for i in range(batch)]
        done += batch
        start = perf_counter_ns()
        boxed = [letterbox(image, info.height, info.width) for image in chosen]
        pixels = to_nchw([image for image, _ in boxed])
        prepared = perf_counter_ns()
        boxes, _, _, counts = session.run_raw(pixels)
        inferred = perf_counter_ns()
        for i, (_, mapping) in enumerate(boxed):
            mapping.to_original(boxes[i, : counts[i]])
        finished = perf_counter_ns()
        return [prepared - start, inferred - prepared, finished - inferred]

    return run, session.provider


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
