"""The runtime of a file, by its suffix."""

from __future__ import annotations

from pathlib import Path

from frs.edge.ort import OnnxRuntimeSession
from frs.edge.predictor import Session
from frs.edge.trt import TensorRTSession
from frs.errors import ExportError


def open_session(path: Path, *, threads: int | None = None) -> Session:
    """An ONNX file in ONNX Runtime on the CPU, a plan in the TensorRT that built it.

    threads: of an operator of ONNX Runtime, None takes every core. Raises ExportError for another suffix, and what the
    session's class raises.
    """
    if path.suffix.lower() == ".onnx":
        return OnnxRuntimeSession(path, threads=threads)
    if path.suffix.lower() == ".plan":
        return TensorRTSession(path)
    raise ExportError(
        f"{path}: the runtime of a file is known by its suffix; name an ONNX file, .onnx, or a TensorRT plan, .plan"
    )
