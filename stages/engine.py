"""engine: a TensorRT plan of every exported file, with a sidecar that says what built it and how far it is proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.common import artifacts, version_of, write_json


def stage(config: Config) -> Stage:
    files = artifacts(config)
    plans = {label: f"{Path(name).with_suffix('.plan')}" for label, name in files.items()}
    sidecars = {f"{label}_sidecar": f"{plan}.json" for label, plan in plans.items()}
    return Stage(
        name="engine",
        inputs={label: f"export/{label}" for label in files},
        outputs={**plans, **sidecars, "engines": "engines.json"},
        reads=("engine",),
        version=2,
        run=_run,
        facts=_facts,
        publish={**plans, **sidecars},
        optional=frozenset({*plans, *sidecars}),
    )


def _facts(_: Config) -> Mapping[str, Any]:
    return {
        "tensorrt": version_of("tensorrt"),
        "tensorrt_rtx": version_of("tensorrt-rtx", "tensorrt_rtx"),
        "gpu": Path("/dev/nvidia0").exists() or Path("/dev/nvhost-gpu").exists(),
    }


def _run(context: Context) -> Metrics:
    from frs.export.engine import build_engine

    config = context.config.engine
    files = artifacts(context.config)
    engines = []
    for done, label in enumerate(files):
        model, precision = label.split("_")
        context.progress.update(done, len(files), file=context.outputs[label].name)
        report = build_engine(
            context.inputs[label],
            context.outputs[label],
            target=config.target,
            workspace_mb=config.workspace_mb,
            timeout_s=config.timeout_s,
        )
        engines.append({"model": model, "precision": precision, **asdict(report)})
        name = context.outputs[label].name
        context.progress.log(f"{name}: {report.proven}" + (f" ({report.message})" if report.message else ""))
    write_json(context.outputs["engines"], engines)
    return {"engines": engines}
