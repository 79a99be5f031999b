"""`frs-pipeline device info`: what this machine is, and whether it can take a bundle."""

from __future__ import annotations

import importlib
from typing import Any

from frs.edge.machine import find_gpu
from frs.edge.telemetry import conditions
from pipeline import __version__
from stages.common import version_of

_LIBRARIES = {
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "onnxruntime": "onnxruntime",
    "cuda-bindings": "cuda.bindings.runtime",
    "pycocotools": "pycocotools.mask",
    "jinja2": "jinja2",
}


def device_info() -> dict[str, Any]:
    """JSON-ready. device: the board, else the GPU, else the CPU; libraries: name -> version and, where it cannot be imported,
    the reason."""
    from frs.edge.bundle import FORMAT

    gpu, here = find_gpu(), conditions()
    return {
        "frs_pipeline": __version__,
        "bundle_format": FORMAT,
        "device": gpu.name if gpu and here.jetpack is None else here.device,
        "jetpack": here.jetpack,
        "power_mode": here.power_mode,
        "clocks": here.clocks,
        "gpu": gpu and {"name": gpu.name, "sm": gpu.sm, "driver": gpu.driver},
        "libraries": {name: _library(name, module) for name, module in _LIBRARIES.items()},
    }


def _library(name: str, module: str) -> dict[str, str | None]:
    """Imported, not only looked for: a wheel for another CUDA is found too."""
    try:
        version = getattr(importlib.import_module(module), "__version__", None)
    except Exception as error:  # what a binary module raises when its libraries are not there is its own affair
        return {"version": None, "missing": f"{type(error).__name__}: {error}"}
    return {"version": version if isinstance(version, str) else version_of(name), "missing": None}
