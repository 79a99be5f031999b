"""What the profile stage times; how is tested in tests/frs/edge."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.loading import load_config
from stages.common import write_json
from stages.profile import _artifacts, stage
from tests.stages.conftest import SMALL


def test_engines_that_this_machine_takes_are_timed_beside_every_onnx_file(tmp_path: Path) -> None:
    config = load_config(SMALL, ["quantize.precisions=[int8-cpu]"])
    proven = {("teacher", "fp32"): "executed", ("student", "fp32"): "deserialised", ("student", "fp16"): "planned"}
    rows = [{"model": model, "precision": precision, "proven": how} for (model, precision), how in proven.items()]
    write_json(tmp_path / "engines.json", rows)
    inputs = {label: tmp_path / source.replace("/", "-") for label, source in stage(config).inputs.items()}
    context: Any = SimpleNamespace(config=config, inputs={**inputs, "engines": tmp_path / "engines.json"})
    assert [(each.model, each.precision, each.runtime, each.path.name) for each in _artifacts(context)] == [
        ("teacher", "fp32", "onnxruntime", "export-teacher_fp32"),
        ("teacher", "fp16", "onnxruntime", "export-teacher_fp16"),
        ("student", "fp32", "onnxruntime", "export-student_fp32"),
        ("student", "fp16", "onnxruntime", "export-student_fp16"),
        ("student", "int8-cpu", "onnxruntime", "quantize-student_int8-cpu"),
        ("teacher", "fp32", "tensorrt", "engine-teacher_fp32"),
        ("student", "fp32", "tensorrt", "engine-student_fp32"),
    ]


def test_no_engine_is_asked_for_of_a_file_that_tensorrt_refuses() -> None:
    inputs = stage(load_config(SMALL, ["quantize.precisions=[int8, int8-cpu]"])).inputs
    assert inputs["student_int8_plan"] == "engine/student_int8"
    assert inputs["student_int8_sidecar"] == "engine/student_int8_sidecar"
    assert "student_int8-cpu_plan" not in inputs
