"""TensorRT plans of exported files: built in a process of their own, and stamped with what built them.

TensorRT is used where it is installed and a GPU is there: its plan is for that GPU. Elsewhere TensorRT-RTX compiles ahead
of time for a named compute capability, which shows that NVIDIA's parser and compiler take the graph; such a plan runs on
RTX cards and never on a Jetson.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from frs.errors import EngineError
from frs.export.files import sha256_of, write_atomically

LOG_LINES = 50


@dataclass(frozen=True)
class EngineReport:
    """What became of a build.

    builder: "tensorrt" or "tensorrt_rtx"; target: as in "sm_86". All None where no library is there. proven: "failed",
    "planned" (compiled), "deserialised" (a GPU took it) or "executed"; message: why it failed.
    """

    builder: str | None
    version: str | None
    target: str | None
    size_mb: float | None
    proven: str
    message: str | None
    seconds: float
    plan_sha256: str | None


def build_engine(
    onnx: Path,
    plan: Path,
    *,
    target: str = "sm_86",
    workspace_mb: int = 1024,
    timeout_s: float = 600.0,
    batches: tuple[int, int, int] = (1, 1, 8),
) -> EngineReport:
    """Build the plan, and write beside it `<plan>.json`, which tells everything that a loader must check.

    target: "sm_NN" for TensorRT-RTX, or "local", the GPU here; TensorRT itself always builds for the GPU here. batches:
    least, usual and greatest batch of a graph whose batch is open. A build that fails is a report, with the builder's own
    words and no plan. Raises EngineError when there is no ONNX file to build from.
    """
    if not onnx.is_file():
        raise EngineError(f"{onnx}: there is no such file; export the detector first")
    plan.unlink(missing_ok=True)  # whatever happens now, an old plan is not this file's
    onnx_sha256 = sha256_of(onnx)
    request = {"onnx": str(onnx.resolve()), "target": target, "workspace_mb": workspace_mb, "batches": batches}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=plan.parent, prefix=".engine-") as folder:
        answer = _run_builder(request, Path(folder), timeout_s)
        seconds = round(time.perf_counter() - started, 2)
        built = Path(folder) / "plan"
        data = built.read_bytes() if answer["proven"] != "failed" else None
    report = EngineReport(
        builder=answer["builder"],
        version=answer["version"],
        target=answer["target"],
        size_mb=round(len(data) / 1e6, 3) if data is not None else None,
        proven=answer["proven"],
        message=answer["message"],
        seconds=seconds,
        plan_sha256=hashlib.sha256(data).hexdigest() if data is not None else None,
    )
    if data is not None:
        write_atomically(plan, data)
    sidecar = {
        **asdict(report),
        "onnx_sha256": onnx_sha256,
        "bytes": len(data) if data is not None else None,
        "workspace_mb": workspace_mb,
        **{key: answer[key] for key in ("gpu", "driver", "profile", "log")},
    }
    write_atomically(plan.with_name(plan.name + ".json"), (json.dumps(sidecar, indent=1) + "\n").encode())
    return report


def _run_builder(request: dict[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
    """A crash or a hang of the compiler must not take the run with it."""
    asked, answered = folder / "request.json", folder / "result.json"
    asked.write_text(json.dumps({**request, "plan": str(folder / "plan"), "result": str(answered)}), encoding="utf-8")
    command = [sys.executable, "-m", "frs.export._build_engine", str(asked)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return _failed(f"the build took longer than {timeout_s:g} s and was stopped; raise engine.timeout_s")
    if done.returncode != 0 or not answered.exists():
        lines = done.stderr.decode(errors="replace").strip().splitlines()[-LOG_LINES:]
        ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        return _failed(f"the builder's process ended with {ended}" + (f": {lines[-1][:300]}" if lines else ""), lines)
    result: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
    return result


def _failed(message: str, log: list[str] | None = None) -> dict[str, Any]:
    nothing = dict.fromkeys(("builder", "version", "target", "gpu", "driver", "profile"))
    return {**nothing, "proven": "failed", "message": message, "log": [line[:500] for line in log or []]}
