"""The stage by itself, on small graphs with real metadata: what is built of what, and what is said where nothing is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from frs.edge import machine
from frs.edge.machine import Gpu
from frs.edge.metadata import GraphMetadata
from frs.edge.sidecar import Sidecar
from pipeline.loading import load_config
from pipeline.stage import Context
from stages import engine
from stages.artifacts import onnx_files
from tests.frs.export.test_engine import rtx
from tests.stages.conftest import SMALL

ALL = ["teacher_fp32", "teacher_fp16", "student_fp32", "student_fp16", "student_int8", "student_int8+fp16"]


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, done: float, total: float, **figures: float | str) -> None: ...

    def log(self, message: str) -> None:
        self.lines.append(message)


def run(folder: Path, *overrides: str, batch: int | str = 1) -> tuple[Mapping[str, Path], list[dict[str, Any]], Log]:
    """What the stage was to write, its rows, and its log."""
    config = load_config(SMALL, overrides)
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    stage = engine.stage(config)
    inputs = {}
    for file in onnx_files(config):
        inputs[file.label] = folder / "in" / file.name
        onnx.save(graph(file.precision, batch), inputs[file.label])
    log = Log()
    context = Context(
        config=config,
        inputs={label: inputs[label] for label in stage.inputs},
        outputs={label: folder / "out" / name for label, name in stage.outputs.items()},
        scratch=folder,
        progress=log,
        hash_file=str,
        run_dir=folder,
        command="",
        commit=None,
    )
    metrics = stage.run(context)
    rows: list[dict[str, Any]] = json.loads(context.outputs["engines"].read_text())
    assert metrics == {"engines": rows}
    assert {label for label, path in context.outputs.items() if not path.exists()} <= stage.optional
    return context.outputs, rows, log


def graph(precision: str, batch: int | str) -> Any:
    """The mean of each image, as a file of ours."""
    described = GraphMetadata(
        classes=("dög",), category_ids=(7,), height=8, width=8, padding=114, candidates=10, rounds=2, detections=5,
        score_threshold=0.1, iou_threshold=0.5, precision=precision, version="0",
    )  # fmt: skip
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
                helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
            ],
            "mean",
            [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 3, 8, 8])],
            [helper.make_tensor_value_info("mean", TensorProto.FLOAT, [batch])],
            [numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    helper.set_model_props(model, described.to_properties())
    return model


@rtx
def test_every_file_for_tensorrt_becomes_an_engine_and_no_other(tmp_path: Path) -> None:
    outputs, rows, log = run(tmp_path)
    assert [f"{row['model']}_{row['precision']}" for row in rows] == ALL
    assert {(row["proven"], row["target"], row["message"]) for row in rows} == {("planned", "sm_86", None)}
    assert not any("int8-cpu" in label for label in outputs)
    for label in ALL:
        sidecar = Sidecar.of(outputs[label])
        assert GraphMetadata.from_properties(sidecar.properties, outputs[label]).precision == label.partition("_")[2]
        assert sidecar.profile is None
    assert log.lines[0] == "teacher.plan: planned"
    assert len(log.lines) == len(ALL)


@rtx
def test_an_open_batch_is_built_for_the_configured_ones(tmp_path: Path) -> None:
    overrides = (
        "engine.batches=[2, 3, 5]",
        "engine.target=sm_89",
        "export.precisions=[fp32]",
        "quantize.precisions=[]",
    )
    outputs, rows, _ = run(tmp_path, *overrides, batch="n")
    assert [(row["model"], row["target"]) for row in rows] == [("teacher", "sm_89"), ("student", "sm_89")]
    assert Sidecar.of(outputs["student_fp32"]).profile == {"images": [[n, 3, 8, 8] for n in (2, 3, 5)]}


def test_where_no_library_is_the_stage_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for name in ("tensorrt", "tensorrt_rtx"):
        (blocked / f"{name}.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(blocked))
    outputs, rows, log = run(tmp_path)
    assert [f"{row['model']}_{row['precision']}" for row in rows] == ALL
    assert {row["proven"] for row in rows} == {row["size_mb"] for row in rows} == {None}
    assert {row["builder"] for row in rows} == {row["plan_sha256"] for row in rows} == {None}
    assert all("tensorrt_rtx cannot be imported (not here)" in row["message"] for row in rows)
    assert log.lines == [f"no engine is built: {rows[0]['message']}"]
    assert [path.name for path in outputs["engines"].parent.iterdir()] == ["engines.json"]


def test_what_an_engine_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = engine.stage(load_config(SMALL))
    installed = {"tensorrt-rtx": "1.7.1", "tensorrt-cu13": "11.1.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(machine, "find_gpu", lambda: Gpu("Orin", "sm_87", "540.4.0"))
    gpu = {"name": "Orin", "sm": "sm_87", "driver": "540.4.0"}
    assert stage.facts(load_config(SMALL)) == {"tensorrt": "11.1.0", "tensorrt_rtx": "1.7.1", "gpu": gpu}
    monkeypatch.setattr(machine, "find_gpu", lambda: None)
    installed.clear()
    monkeypatch.setattr(engine, "find_spec", lambda name: object() if name == "tensorrt" else None)
    # A system's package may come without its metadata.
    assert stage.facts(load_config(SMALL)) == {"tensorrt": "unknown", "tensorrt_rtx": None, "gpu": None}
    assert stage.reads == ("engine",)
