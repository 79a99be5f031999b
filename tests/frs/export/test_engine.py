"""Builds by the real TensorRT-RTX, and the choices that the builder makes, seen through a stand-in module."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from frs.edge.machine import Gpu, find_gpu
from frs.errors import EngineError
from frs.export import _build_engine
from frs.export.engine import build_engine
from frs.export.onnx import export_onnx
from tests.frs.export.lab import busy_detector, pictures

ORIN = Gpu("Orin", "sm_87", "540.4.0")


def has_rtx() -> bool:
    try:
        import tensorrt_rtx  # noqa: F401
    except (ImportError, OSError):
        return False
    return find_gpu() is None  # with a GPU, TensorRT may be what builds


rtx = pytest.mark.skipif(not has_rtx(), reason="tensorrt_rtx alone, without a GPU, is what these builds are about")


@rtx
@pytest.mark.parametrize(("precision", "batch"), [("fp32", 1), ("fp16", None)])
def test_exported_graphs_build(precision: str, batch: int | None, tmp_path: Path) -> None:
    path, plan = tmp_path / "x.onnx", tmp_path / "x.plan"
    detector = busy_detector(pictures(2, 96, 128), boxes=1, head_norm="group")
    exported = export_onnx(detector, path, height=96, width=128, batch=batch, precision=precision)
    report = build_engine(path, plan, target="sm_86")
    assert (report.builder, report.target, report.proven, report.message) == ("tensorrt_rtx", "sm_86", "planned", None)
    assert report.size_mb == pytest.approx(plan.stat().st_size / 1e6, abs=1e-3)
    sidecar = json.loads((tmp_path / "x.plan.json").read_text())
    assert sidecar["onnx_sha256"] == exported.sha256
    assert sidecar["plan_sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert sidecar["bytes"] == plan.stat().st_size
    assert (sidecar["gpu"], sidecar["driver"]) == (None, None)
    open_batch = {"images": [[1, 3, 96, 128], [1, 3, 96, 128], [8, 3, 96, 128]]}
    assert sidecar["profile"] == (None if batch else open_batch)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.onnx", "x.plan", "x.plan.json"]


@rtx
def test_what_the_compiler_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    path, plan = tmp_path / "nms.onnx", tmp_path / "nms.plan"
    onnx.save(non_maximum_suppression(), path)
    plan.write_bytes(b"of an earlier build")
    report = build_engine(path, plan)
    assert report.proven == "failed"
    assert "has no runners that implement it" in (report.message or "")
    assert report.size_mb is None
    assert not plan.exists()
    sidecar = json.loads((tmp_path / "nms.plan.json").read_text())
    assert sidecar["proven"] == "failed"
    assert 0 < len(sidecar["log"]) <= _build_engine.KEPT_LINES


@rtx
def test_a_jetson_is_not_built_for_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "nms.onnx"
    onnx.save(non_maximum_suppression(), path)
    report = build_engine(path, tmp_path / "x.plan", target="sm_87")
    assert report.proven == "failed"
    assert report.message is not None
    assert "cannot build for sm_87, it knows sm_" in report.message
    assert "there is no GPU here" in (build_engine(path, tmp_path / "x.plan", target="local").message or "")


def test_a_build_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "nms.onnx"
    onnx.save(non_maximum_suppression(), path)
    report = build_engine(path, tmp_path / "x.plan", timeout_s=0.01)
    assert (report.proven, report.builder) == ("failed", None)
    assert "longer than 0.01 s" in (report.message or "")


def test_a_builder_that_crashes_is_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nms.onnx"
    onnx.save(non_maximum_suppression(), path)
    crash = tmp_path / "python"
    crash.write_text("#!/bin/sh\necho 'out of luck' >&2\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    report = build_engine(path, tmp_path / "x.plan")
    assert report.message == "the builder's process ended with signal 11: out of luck"


def test_there_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.onnx: there is no such file"):
        build_engine(tmp_path / "absent.onnx", tmp_path / "x.plan")


def test_without_a_library_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert _build_engine.choose(ORIN) is None
    told = _build_engine.answer(None, None, None, "failed", "neither")
    assert (told["builder"], told["version"]) == (None, None)


def test_tensorrt_is_chosen_only_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    full, rtx_module = SimpleNamespace(), SimpleNamespace()
    monkeypatch.setitem(sys.modules, "tensorrt", full)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx_module)
    assert _build_engine.choose(ORIN) is full
    assert _build_engine.choose(None) is rtx_module


class Severity:
    """As in TensorRT: the logger's class carries its own severities."""

    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: int, message: str) -> None: ...


def stand_in(*, strongly_typed: bool, ahead_of_time: bool, batch: int = 1, builds: bool = True) -> Any:
    """A module with the attributes of TensorRT 10 (STRONGLY_TYPED) or 11 (none), or of RTX; it notes its calls."""
    calls: dict[str, Any] = {}

    class Config:
        def __init__(self) -> None:
            if ahead_of_time:
                self.num_compute_capabilities = 0

        def set_memory_pool_limit(self, pool: str, size: int) -> None:
            calls["workspace"] = (pool, size)

        def set_compute_capability(self, capability: str, index: int) -> None:
            calls["capability"] = (self.num_compute_capabilities, capability, index)

        def add_optimization_profile(self, profile: Any) -> None:
            calls["profiles"] = [*calls.get("profiles", []), profile.shapes]

    class Profile:
        def __init__(self) -> None:
            self.shapes: dict[str, Any] = {}

        def set_shape(self, name: str, *shapes: list[int]) -> None:
            self.shapes[name] = shapes

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def create_network(self, flags: int) -> Any:
            calls["flags"] = flags
            entry = SimpleNamespace(name="images", shape=(batch, 3, 8, 8))
            return SimpleNamespace(num_inputs=1, get_input=lambda _: entry)

        create_builder_config = staticmethod(Config)
        create_optimization_profile = staticmethod(Profile)

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            self.logger.log(Severity.INFO, "weights 00 11 22")
            self.logger.log(Severity.WARNING, "w" * 10_000)
            if not builds:
                self.logger.log(Severity.ERROR, "no kernel for /nms")
            return b"plan" if builds else None

    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> object:
            calls["deserialised"] = plan
            return object()

    module = SimpleNamespace(
        __name__="stand_in",
        __version__="0",
        ILogger=Severity,
        Builder=Builder,
        OnnxParser=lambda network, logger: SimpleNamespace(parse_from_file=lambda path: True, num_errors=0),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        NetworkDefinitionCreationFlag=SimpleNamespace(EXPLICIT_BATCH=0),
        Runtime=Runtime,
        calls=calls,
    )
    if strongly_typed:
        module.NetworkDefinitionCreationFlag.STRONGLY_TYPED = 1
    if ahead_of_time:
        module.ComputeCapability = SimpleNamespace(SM86="SM86", CURRENT="CURRENT")
    return module


def ask(module: Any, folder: Path, gpu: Gpu | None, target: str = "sm_86") -> dict[str, Any]:
    request = {
        "onnx": "x.onnx",
        "plan": str(folder / "plan"),
        "target": target,
        "workspace_mb": 64,
        "batches": [1, 2, 4],
    }
    return _build_engine.build(module, request, gpu)


def test_tensorrt_10_is_asked_for_strong_typing_and_never_for_explicit_batch(tmp_path: Path) -> None:
    trt = stand_in(strongly_typed=True, ahead_of_time=False)
    told = ask(trt, tmp_path, ORIN)
    assert trt.calls["flags"] == 0b10
    assert trt.calls["workspace"] == ("workspace", 64 << 20)
    assert "capability" not in trt.calls
    assert trt.calls["deserialised"] == b"plan"
    # Whatever the configured target: the plan is for the GPU that it was built on.
    assert (told["target"], told["proven"], told["gpu"], told["driver"]) == ("sm_87", "deserialised", "Orin", "540.4.0")


def test_tensorrt_11_has_no_flags(tmp_path: Path) -> None:
    trt = stand_in(strongly_typed=False, ahead_of_time=False)
    ask(trt, tmp_path, ORIN)
    assert trt.calls["flags"] == 0


def test_ahead_of_time_names_its_capability_and_proves_no_more_than_a_plan(tmp_path: Path) -> None:
    trt = stand_in(strongly_typed=True, ahead_of_time=True)
    told = ask(trt, tmp_path, None)
    assert trt.calls["capability"] == (1, "SM86", 0)
    assert told["proven"] == "planned"
    assert "deserialised" not in trt.calls
    other_gpu = ask(trt, tmp_path, ORIN)
    assert other_gpu["proven"] == "planned"  # a plan for sm_86 is not tried on an Orin
    local = ask(trt, tmp_path, ORIN, target="local")
    assert trt.calls["capability"] == (1, "CURRENT", 0)
    assert (local["target"], local["proven"]) == ("sm_87", "deserialised")


def test_an_open_batch_gets_a_profile(tmp_path: Path) -> None:
    trt = stand_in(strongly_typed=True, ahead_of_time=True, batch=-1)
    told = ask(trt, tmp_path, None)
    shapes = [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]
    assert trt.calls["profiles"] == [{"images": tuple(shapes)}]
    assert told["profile"] == {"images": shapes}


def test_the_log_is_short_and_holds_no_weights(tmp_path: Path) -> None:
    told = ask(stand_in(strongly_typed=True, ahead_of_time=True, builds=False), tmp_path, None)
    assert told["message"] == "the graph was not built: no kernel for /nms"
    assert told["log"] == ["w" * _build_engine.LINE_LENGTH, "no kernel for /nms"]
    assert not (tmp_path / "plan").exists()


def non_maximum_suppression() -> Any:
    """A valid graph around the one operator that NVIDIA's compiler does not build."""
    constants = {"most": np.array([10]), "iou": np.array([0.5], np.float32), "score": np.array([0.1], np.float32)}
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", ["boxes", "scores", *constants], ["selected"])],
        "nms",
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, 50, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1, 50]),
        ],
        [helper.make_tensor_value_info("selected", TensorProto.INT64, ["n", 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
