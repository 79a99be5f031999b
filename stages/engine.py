"""engine: a TensorRT plan of every exported file, with a sidecar that says what built it and how far it is proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import OnnxFile, onnx_files
from stages.common import version_of, write_json


def stage(config: Config) -> Stage:
    files = _files(config)
    plans = {file.label: file.plan for file in files}
    sidecars = {f"{label}_sidecar": f"{plan}.json" for label, plan in plans.items()}
    return Stage(
        name="engine",
        inputs={file.label: f"{file.stage}/{file.label}" for file in files},
        outputs={**plans, **sidecars, "engines": "engines.json"},
        reads=("engine",),
        version=2,
        run=_run,
        facts=_facts,
        publish={**plans, **sidecars},
        optional=frozenset({*plans, *sidecars}),
    )


def _files(config: Config) -> tuple[OnnxFile, ...]:
    return tuple(file for file in onnx_files(config) if file.for_tensorrt)


def _facts(_: Config) -> Mapping[str, Any]:
    return {
        "tensorrt": version_of("tensorrt"),
        "tensorrt_rtx": version_of("tensorrt-rtx", "tensorrt_rtx"),
        "gpu": Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists(),
    }


def _run(context: Context) -> Metrics:
    from frs.export.engine import build_engine

    config = context.config.engine
    files = _files(context.config)
    engines = []
    for done, file in enumerate(files):
        context.progress.update(done, len(files), file=file.plan)
        report = build_engine(
            context.inputs[file.label],
            context.outputs[file.label],
            target=config.target,
            workspace_mb=config.workspace_mb,
            timeout_s=config.timeout_s,
        )
        engines.append({"model": file.model, "precision": file.precision, **asdict(report)})
        context.progress.log(f"{file.plan}: {report.proven}" + (f" ({report.message})" if report.message else ""))
    write_json(context.outputs["engines"], engines)
    return {"engines": engines}
