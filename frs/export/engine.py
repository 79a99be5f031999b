"""TensorRT plans of exported files: built in a process of their own, and stamped with what built them.

TensorRT is used where it is installed and a GPU is there: its plan is for that GPU. Elsewhere TensorRT-RTX compiles ahead
of time for a named compute capability, which shows that NVIDIA's parser and compiler take the graph; such a plan runs on
RTX cards and never on a Jetson.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from frs.edge.files import sha256_of, write_atomically
from frs.edge.sidecar import Sidecar, sidecar_path
from frs.errors import EngineError
from frs.export import timing_cache
from frs.export.limited import Ended, run_module


@dataclass(frozen=True)
class EngineReport:
    """What became of a build, as `Sidecar` tells it; proven is None where no library that builds is there.

    message: why it failed, or why there is none.
    """

    builder: str | None
    version: str | None
    target: str | None
    size_mb: float | None
    proven: str | None
    message: str | None
    seconds: float
    plan_sha256: str | None


def build_engine(
    onnx: Path,
    plan: Path,
    *,
    properties: Mapping[str, str],
    target: str | None = None,
    workspace_mb: int = 1024,
    timeout_s: float = 600.0,
    batches: tuple[int, int, int] = (1, 1, 8),
    timings: Path | None = None,
) -> EngineReport:
    """Build the plan, and write beside it `<plan>.json`, the `Sidecar`, which tells everything that a loader must check.

    properties: the ONNX file's metadata, `GraphMetadata.to_properties()`. target: "sm_NN" for TensorRT-RTX, None for the GPU
    here, or sm_86 where there is none; TensorRT itself always builds for the GPU here. batches: least, usual and greatest
    batch of a graph whose batch is open. timings: a folder in which TensorRT's timing caches are kept between builds.

    A build that fails, crashes or takes longer than timeout_s is a report, with the builder's own words and no plan; where
    nothing is there that builds, there is no sidecar either. Raises EngineError when there is no ONNX file to build from, and
    for batches that are not in order.
    """
    if not onnx.is_file():
        raise EngineError(f"{onnx}: there is no such file; export the detector first")
    if not 1 <= batches[0] <= batches[1] <= batches[2]:
        raise EngineError(
            f"batches {list(batches)}: give the least, the usual and the greatest batch, from 1 on, in order"
        )
    for old in (plan, sidecar_path(plan)):
        old.unlink(missing_ok=True)  # whatever happens now, they are not this file's
    onnx_sha256 = sha256_of(onnx)
    request = {
        "onnx": str(onnx.resolve()),
        "target": target,
        "workspace_mb": workspace_mb,
        "batches": batches,
        "timings": timings and str(timings.resolve()),
    }
    with tempfile.TemporaryDirectory(dir=plan.parent.resolve(), prefix=".engine-") as folder:
        built = Path(folder) / "plan"
        started = time.perf_counter()
        answer = _run_builder(request, built, timeout_s)
        seconds = round(time.perf_counter() - started, 2)
        data = built.read_bytes() if answer["proven"] not in ("failed", None) else None
        if answer["proven"] is None:
            return _report({**answer, "seconds": seconds, "size_mb": None, "plan_sha256": None})
        if timings is not None and data is not None:
            answer["log"] += _keep_times(built.parent, timings)
        sidecar = Sidecar(
            **answer,
            seconds=seconds,
            size_mb=round(len(data) / 1e6, 3) if data is not None else None,
            bytes=len(data) if data is not None else None,
            plan_sha256=hashlib.sha256(data).hexdigest() if data is not None else None,
            onnx_sha256=onnx_sha256,
            workspace_mb=workspace_mb,
            properties=dict(properties),
        )
        if sidecar.proven == "deserialised":
            sidecar = execute(sidecar, built, timeout_s)
    if data is not None:
        write_atomically(plan, data)
    write_atomically(sidecar_path(plan), sidecar.to_json().encode())
    return _report(vars(sidecar))


def _report(values: Mapping[str, Any]) -> EngineReport:
    return EngineReport(**{field.name: values[field.name] for field in fields(EngineReport)})


def _run_builder(request: Mapping[str, Any], plan: Path, timeout_s: float) -> dict[str, Any]:
    """A crash or a hang of the compiler must not take the run with it."""
    folder = plan.parent
    asked, answered = folder / "request.json", folder / "result.json"
    paths = {"plan": str(plan), "result": str(answered), "parent": os.getpid()}
    asked.write_text(json.dumps({**request, **paths}), encoding="utf-8")
    ended = run_module("frs.export._build_engine", str(asked), folder=folder, timeout_s=timeout_s)
    begun: dict[str, Any] = dict.fromkeys(("builder", "version", "target", "gpu", "driver", "profile"))
    if answered.exists():
        begun = json.loads(answered.read_text(encoding="utf-8"))
    if ended.status == 0:
        return begun
    return {**begun, "proven": "failed", "message": _ending(ended, timeout_s), "log": ended.lines}


def _ending(ended: Ended, timeout_s: float) -> str:
    if ended.status is None:
        told = f"the build took longer than {timeout_s:g} s and was stopped; raise engine.timeout_s"
    else:
        told = f"the builder's process ended with {ended}"
        if ended.status == -signal.SIGKILL:
            told += ", as the system does where memory runs out; lower engine.workspace_mb"
    return told + (f": {ended.lines[-1][:300]}" if ended.lines else "")


def _keep_times(folder: Path, timings: Path) -> list[str]:
    """Move the timing cache that the builder left to where the next build looks. What went wrong, for the log."""
    said = (
        timing_cache.store(timings / left.name, left.read_bytes()) for left in folder.glob(f"*{timing_cache.SUFFIX}")
    )
    return [fault for fault in said if fault is not None]


def execute(sidecar: Sidecar, plan: Path, timeout_s: float) -> Sidecar:
    """Run the plan once, on grey images, in a process of its own; the sidecar then says so, or why it did not run."""
    write_atomically(sidecar_path(plan), sidecar.to_json().encode())
    ended = run_module("frs.export._try_engine", str(plan), str(os.getpid()), folder=plan.parent, timeout_s=timeout_s)
    if ended.status == 0:
        return replace(sidecar, proven="executed")
    why = f"the process ended with {ended}" if ended.status is not None else f"not within {timeout_s:g} s"
    return replace(sidecar, message=f"it did not run: {ended.lines[-1][:300] if ended.lines else why}")
