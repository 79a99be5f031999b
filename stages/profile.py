"""profile: latency, memory and energy of every file that runs here, in turn, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import deployed, onnx_inputs, plan_inputs
from stages.common import VAL_INPUTS, dataset, read_json, version_of, write_json

if TYPE_CHECKING:
    from frs.edge.measured import Artifact


def stage(config: Config) -> Stage:
    return Stage(
        name="profile",
        inputs={
            **VAL_INPUTS,
            **onnx_inputs(config),
            **plan_inputs(config),
        },
        outputs={"profiles": "profiles.json"},
        reads=("profile", "input", "export.batch"),
        version=2,
        run=_run,
        facts=_facts,
    )


def _facts(config: Config) -> Mapping[str, Any]:
    from frs.edge.machine import describe_machine

    return {
        "onnxruntime": version_of("onnxruntime", "onnxruntime-gpu"),
        "tensorrt": version_of("tensorrt", "tensorrt-rtx", "tensorrt_rtx"),
        "threads": threads(config),
        **describe_machine(),
    }


def threads(config: Config) -> int:
    """Of the profiled session."""
    from stages.common import threads as available

    return config.profile.threads or available(config)


def _run(context: Context) -> Metrics:
    from frs.edge.latency import profile_artifacts

    config = context.config.profile
    data = dataset(context, "val").first(config.images)
    profiles = profile_artifacts(
        list(_artifacts(context)),
        [data.path(image) for image in data.images],
        runs=config.runs,
        seconds=config.seconds,
        threads=threads(context.config),
        batches=config.batches,
        progress=context.progress.update,
    )
    write_json(context.outputs["profiles"], profiles)
    for said in dict.fromkeys(warning for row in profiles for warning in row["warnings"]):
        context.progress.log(said)
    return {"profiles": profiles}


def _artifacts(context: Context) -> Iterator[Artifact]:
    """Every ONNX file, and of the engines those that this machine's GPU takes."""
    from frs.edge.measured import Artifact

    for each in deployed(context.config, read_json(context.inputs["engines"])):
        yield Artifact(each.file.model, each.file.precision, each.runtime, context.inputs[each.input])
