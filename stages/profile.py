"""profile: latency and memory of every exported file, teacher and student in turn, each in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import onnx_files, onnx_inputs
from stages.common import VAL_INPUTS, dataset, version_of, write_json


def stage(config: Config) -> Stage:
    return Stage(
        name="profile",
        inputs={**VAL_INPUTS, **onnx_inputs(config)},
        outputs={"profiles": "profiles.json"},
        reads=("profile", "input", "export.batch"),
        version=1,
        run=_run,
        facts=_facts,
    )


def _facts(config: Config) -> Mapping[str, Any]:
    from frs.edge.machine import describe_machine

    return {
        "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu"),
        "threads": threads(config),
        **describe_machine(),
    }


def threads(config: Config) -> int:
    """Of the profiled session."""
    from stages.common import threads as available

    return config.profile.threads or available(config)


def _run(context: Context) -> Metrics:
    from frs.edge.latency import Artifact, profile_artifacts

    config = context.config.profile
    data = dataset(context, "val").first(config.images)
    profiles = profile_artifacts(
        [
            Artifact(file.model, file.precision, "onnxruntime", context.inputs[file.label])
            for file in onnx_files(context.config)
        ],
        [data.path(image) for image in data.images],
        runs=config.runs,
        warmup=config.warmup,
        threads=threads(context.config),
        batch=context.config.export.batch or 1,
        progress=context.progress.update,
    )
    write_json(context.outputs["profiles"], profiles)
    return {"profiles": profiles}
