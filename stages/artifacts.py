"""The files that could be shipped: which there are, what makes each, and what each is for."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config

SUFFIXES = {"fp32": "", "fp16": ".fp16", "int8": ".int8", "int8+fp16": ".int8-fp16", "int8-cpu": ".int8-cpu"}


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
