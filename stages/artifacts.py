"""The files that could be shipped: which there are, what makes each, and what each is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config

SUFFIXES = {"fp32": "", "fp16": ".fp16", "int8": ".int8", "int8+fp16": ".int8-fp16", "int8-cpu": ".int8-cpu"}
RUNS_HERE = ("deserialised", "executed")
"""How far an engine is proven that this machine's GPU takes."""


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file of a run. stage: the one that writes it."""

    model: str
    precision: str
    stage: str

    @property
    def label(self) -> str:
        """Among the outputs of its stage, and in the report."""
        return f"{self.model}_{self.precision}"

    @property
    def name(self) -> str:
        return f"{self.model}{SUFFIXES[self.precision]}.onnx"

    @property
    def plan(self) -> str:
        """The name of its TensorRT engine."""
        return f"{self.model}{SUFFIXES[self.precision]}.plan"

    @property
    def for_tensorrt(self) -> bool:
        return self.precision != "int8-cpu"


def exported(config: Config) -> tuple[OnnxFile, ...]:
    """What torch writes."""
    return tuple(
        OnnxFile(model, precision, "export")
        for model in ("teacher", "student")
        for precision in config.export.precisions
    )


def quantised(config: Config) -> tuple[OnnxFile, ...]:
    """The int8 variants."""
    return tuple(
        OnnxFile(model, precision, "quantize") for model in config.quantize.models for precision in config.quantised
    )


def onnx_files(config: Config) -> tuple[OnnxFile, ...]:
    """All of them, a model's together."""
    files = (*exported(config), *quantised(config))
    return tuple(file for model in ("teacher", "student") for file in files if file.model == model)


def onnx_inputs(config: Config) -> dict[str, str]:
    """Label -> "stage/artifact" of all of them, for `Stage.inputs`."""
    return {file.label: f"{file.stage}/{file.label}" for file in onnx_files(config)}


@dataclass(frozen=True)
class Deployed:
    """A file in the runtime that runs it: "onnxruntime", or "tensorrt" for its engine."""

    file: OnnxFile
    runtime: str

    @property
    def label(self) -> str:
        """In gates and the report; an engine is another thing than the file that it was built from."""
        return self.file.label if self.runtime == "onnxruntime" else f"{self.file.label}.{self.runtime}"

    @property
    def input(self) -> str:
        """Its label among the inputs of a stage."""
        return self.file.label if self.runtime == "onnxruntime" else f"{self.file.label}_plan"

    @property
    def name(self) -> str:
        return self.file.name if self.runtime == "onnxruntime" else self.file.plan


def plan_inputs(config: Config) -> dict[str, str]:
    """The engines, which are there where they could be built, their sidecars, and what is known of them."""
    files = [file for file in onnx_files(config) if file.for_tensorrt]
    return {
        **{f"{file.label}_plan": f"engine/{file.label}" for file in files},
        **{
            f"{file.label}_sidecar": f"engine/{file.label}_sidecar" for file in files
        },  # a session reads it beside the plan
        "engines": "engine/engines",
    }


def deployed(config: Config, engines: Iterable[Mapping[str, Any]]) -> tuple[Deployed, ...]:
    """All that runs here: every ONNX file, and of the engines (rows of engines.json) those that this machine's GPU takes."""
    runs = {(row["model"], row["precision"]) for row in engines if row["proven"] in RUNS_HERE}
    files = onnx_files(config)
    return (
        *(Deployed(file, "onnxruntime") for file in files),
        *(Deployed(file, "tensorrt") for file in files if (file.model, file.precision) in runs),
    )
