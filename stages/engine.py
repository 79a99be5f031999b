"""engine: a TensorRT plan of every exported file, with a sidecar that says what built it and how far it is proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import OnnxFile, onnx_files
from stages.common import cache_folder, version_of, write_json


def stage(config: Config) -> Stage:
    files = _files(config)
    plans = {file.label: file.plan for file in files}
    sidecars = {f"{label}_sidecar": f"{plan}.json" for label, plan in plans.items()}
    return Stage(
        name="engine",
        inputs={file.label: f"{file.stage}/{file.label}" for file in files},
        outputs={**plans, **sidecars, "engines": "engines.json"},
        reads=("engine",),
        version=3,
        run=_run,
        facts=_facts,
        publish={**plans, **sidecars},
        optional=frozenset({*plans, *sidecars}),
    )


def _files(config: Config) -> tuple[OnnxFile, ...]:
    return tuple(file for file in onnx_files(config) if file.for_tensorrt)


def _facts(_: Config) -> Mapping[str, Any]:
    from frs.edge.machine import find_gpu

    gpu = find_gpu()
    return {
        "tensorrt": _library("tensorrt", "tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "tensorrt_rtx": _library("tensorrt_rtx", "tensorrt-rtx", "tensorrt_rtx"),
        "gpu": gpu and asdict(gpu),
    }


def _library(module: str, *distributions: str) -> str | None:
    """Its version without importing it; a system's package may not tell."""
    return version_of(*distributions) or ("unknown" if find_spec(module) else None)


def _run(context: Context) -> Metrics:
    from frs.export.engine import build_engine
    from frs.export.onnx import read_metadata

    config = context.config.engine
    files = _files(context.config)
    engines = []
    said: set[str | None] = set()
    for done, file in enumerate(files):
        context.progress.update(done, len(files), file=file.plan)
        onnx = context.inputs[file.label]
        report = build_engine(
            onnx,
            context.outputs[file.label],
            properties=read_metadata(onnx).to_properties(),
            target=config.target,
            workspace_mb=config.workspace_mb,
            timeout_s=config.timeout_s,
            batches=config.batches,
            timings=cache_folder() / "timing",
        )
        engines.append({"model": file.model, "precision": file.precision, **asdict(report)})
        if report.proven is not None:
            why = f" ({report.message})" if report.message else ""
            context.progress.log(f"{file.plan}: {report.proven}{why}")
        elif report.message not in said:
            context.progress.log(f"no engine is built: {report.message}")
            said.add(report.message)
    write_json(context.outputs["engines"], engines)
    return {"engines": engines}
