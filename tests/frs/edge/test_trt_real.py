"""The stand-in of a device held against the real libraries, as far as they go without a GPU."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from enum import EnumMeta
from pathlib import Path
from typing import Any

import pytest

from frs.edge.cuda import CudaStream
from frs.edge.machine import find_gpu
from frs.edge.trt import TensorRTSession
from frs.errors import EngineError, FrsError, RuntimeMissing
from tests.frs.edge.stand_in import Behaviour, Cuda, install, tensorrt
from tests.frs.edge.stand_in.tensorrt import ORIN, Context, DataType, Engine, TensorIOMode
from tests.frs.edge.trt_lab import plan_of


def functions(kind: type) -> list[str]:
    return [name for name in vars(kind) if not name.startswith("_")]


@pytest.mark.parametrize("name", [name for name in functions(Cuda) if name.startswith("cuda")])
def test_cuda_bindings_has_what_the_stand_in_has(name: str) -> None:
    """The same functions with as many arguments and results, the same constants and members of enumerations."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    ours, real = getattr(Cuda, name), getattr(runtime, name)
    if isinstance(ours, EnumMeta):
        members: list[Any] = list(ours)
        assert {member.name: member.value for member in members} == {
            member.name: int(getattr(real, member.name)) for member in members
        }
    elif isinstance(ours, int):
        assert ours == int(real)
    else:
        written = re.match(rf"{name}\((.*)\)", real.__doc__.strip())
        assert written is not None
        wanted = [argument for argument in written[1].split(",") if argument.strip()]
        assert len(wanted) == len(inspect.signature(ours).parameters) - 1


RESULTS = [name for name in functions(Cuda) if hasattr(getattr(Cuda, name), "results")]


@pytest.mark.skipif(find_gpu() is not None, reason="these calls are harmless only where there is no GPU")
@pytest.mark.parametrize("name", RESULTS)
def test_cuda_bindings_answers_a_status_and_as_many_results(name: str) -> None:
    """Without a driver every call fails, in the shape in which it would succeed."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    handles = {"stream": runtime.cudaStream_t, "event": runtime.cudaEvent_t, "graph": runtime.cudaGraph_t}
    values: dict[str, Any] = {
        **{key: kind() for key, kind in handles.items()},
        **{key: runtime.cudaEvent_t() for key in ("start", "end")},
        "graphExec": runtime.cudaGraphExec_t(),
        "kind": runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
        "mode": runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
    }
    wanted = list(inspect.signature(getattr(Cuda, name)).parameters)[1:]
    status, *results = getattr(runtime, name)(*(values.get(argument, 0) for argument in wanted))
    assert status in (runtime.cudaError_t.cudaErrorInsufficientDriver, runtime.cudaError_t.cudaErrorNoDevice)
    assert results == [None] * getattr(Cuda, name).results


@pytest.mark.skipif(find_gpu() is not None, reason="a machine without a GPU is wanted")
def test_the_real_cuda_bindings_without_a_driver() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(RuntimeMissing, match=r"CUDA finds no GPU here .*CUDA driver version is insufficient"):
        CudaStream()


def test_without_a_device_or_cuda_bindings(monkeypatch: pytest.MonkeyPatch, cuda: Cuda) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    cuda.present = False
    with pytest.raises(RuntimeMissing, match=r"CUDA finds no GPU here \(the text of 100, cudaErrorNoDevice\)"):
        CudaStream()
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(RuntimeMissing, match=r"pip install 'frs-pipeline\[device\]'"):
        CudaStream()


def test_tensorrt_rtx_has_what_the_stand_in_has() -> None:
    rtx = pytest.importorskip("tensorrt_rtx")
    module = tensorrt("rtx", Cuda(), Behaviour())
    for name in ("Runtime", "ILogger", "DataType", "TensorIOMode"):
        assert hasattr(rtx, name), name
    for ours, real in ((module.Runtime, rtx.Runtime), (Engine, rtx.ICudaEngine), (Context, rtx.IExecutionContext)):
        for name in functions(ours):
            assert hasattr(real, name), name
            if inspect.isfunction(getattr(ours, name)):
                for argument in list(inspect.signature(getattr(ours, name)).parameters)[1:]:
                    assert re.search(rf"\b{argument}: ", getattr(real, name).__doc__), f"{name}({argument})"
    for ours, real in ((DataType, rtx.DataType), (TensorIOMode, rtx.TensorIOMode)):
        assert [(member.name, member.value) for member in ours] == [
            (getattr(real, member.name).name, int(getattr(real, member.name))) for member in ours
        ]


def test_the_real_parser_sees_the_tensors_that_are_expected(exported: dict[str, Path]) -> None:
    """Names, kinds and shapes of the exported graph, as TensorRT-RTX understands it, pass the check of a plan's."""
    rtx = pytest.importorskip("tensorrt_rtx")
    logger = rtx.Logger(rtx.Logger.ERROR)
    for file in exported.values():
        network = rtx.Builder(logger).create_network(0)
        parser = rtx.OnnxParser(network, logger)
        assert parser.parse_from_file(str(file))
        seen = {
            tensor.name: (tensor.dtype.name, tuple(tensor.shape)[1:])
            for tensor in [network.get_input(0), *map(network.get_output, range(network.num_outputs))]
        }
        assert seen == {
            "images": ("UINT8", (3, 64, 96)),
            "boxes": ("FLOAT", (100, 4)),
            "scores": ("FLOAT", (100,)),
            "labels": ("INT32", (100,)),
            "num_detections": ("INT32", ()),
        }


def test_the_real_rtx_and_cuda_bindings_on_a_machine_without_a_gpu(
    exported: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real plan, as far as it goes: to the GPU that is not there, and, taken for there, to CUDA's own refusal."""
    rtx = pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("cuda.bindings.runtime")
    if find_gpu() is not None:
        pytest.skip("a machine without a GPU is wanted")
    built_by = {"builder": "tensorrt_rtx", "version": rtx.__version__, "target": "sm_86", "gpu": None}
    plan = plan_of(exported["fixed"], tmp_path, **built_by)
    with pytest.raises(EngineError, match="it was built for sm_86, and no GPU is found here"):
        TensorRTSession(plan)
    monkeypatch.setattr("frs.edge.trt.find_gpu", lambda: replace(ORIN, sm="sm_86"))
    with pytest.raises(FrsError, match="CUDA finds no GPU here") as caught:
        TensorRTSession(plan)
    assert isinstance(caught.value, RuntimeMissing)
