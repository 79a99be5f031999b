"""A plan on a device that is not there: see `stand_in` for what that can show. The answers are those of ONNX Runtime on
the same graph, so that a byte which goes astray is seen. What can be held against the real libraries is at the end."""

from __future__ import annotations

import gc
import hashlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from enum import EnumMeta
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from frs.edge.cuda import CudaStream
from frs.edge.machine import Gpu, find_gpu
from frs.edge.ort import OnnxRuntimeSession
from frs.edge.predictor import Detections
from frs.edge.sessions import open_session
from frs.edge.sidecar import Sidecar, sidecar_path
from frs.edge.trt import TensorRTSession
from frs.errors import EngineError, ExportError, FrsError, RuntimeMissing
from frs.export.onnx import export_onnx
from stages.predict import run_predict
from tests.frs.edge.stand_in import Behaviour, Cuda, install, tensorrt
from tests.frs.edge.stand_in.tensorrt import CONTEXT_BYTES, ORIN, Context, DataType, Engine, TensorIOMode
from tests.frs.export.lab import busy_detector, pictures

IMAGES = pictures(4, 64, 96)
BATCHES = {"fixed": 2, "open": None}
DEVICE_BYTES = 4 * (3 * 64 * 96 + 100 * (16 + 4 + 4) + 4)
"""Of the buffers for four images: pixels; boxes, scores and labels of 100 detections; their number."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trt")
    detector = busy_detector(IMAGES, boxes=20)
    for name, batch in BATCHES.items():
        export_onnx(detector, folder / f"{name}.onnx", height=64, width=96, batch=batch)
    return {name: folder / f"{name}.onnx" for name in BATCHES}


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    device = Cuda()
    yield device
    if device.live:
        gc.collect()  # a caught exception may still hold its frames
    assert device.live == 0, "not all was given back"


def plan_of(onnx_file: Path, folder: Path, **changes: Any) -> Path:
    """A plan that the stand-in opens, and its sidecar, in some ways another."""
    plan = folder / f"{onnx_file.stem}.plan"
    data = onnx_file.read_bytes()
    plan.write_bytes(data)
    sidecar = Sidecar(
        builder="tensorrt",
        version="10.3.0",
        target="sm_87",
        gpu="Orin",
        driver="540.4.0",
        profile=None,
        proven="executed",
        message=None,
        seconds=1.0,
        size_mb=round(len(data) / 1e6, 3),
        bytes=len(data),
        plan_sha256=hashlib.sha256(data).hexdigest(),
        onnx_sha256="0" * 64,
        workspace_mb=64,
        log=[],
        properties={entry.key: entry.value for entry in onnx.load(onnx_file).metadata_props},
    )
    sidecar_path(plan).write_text(replace(sidecar, **changes).to_json())
    return plan


@pytest.fixture
def plans(exported: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {name: plan_of(file, tmp_path) for name, file in exported.items()}


def same(found: list[Detections], expected: list[Detections]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert len(other) >= 20
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize(("family", "version"), [("10.3", "10.3.0"), ("10.16", "10.16.0"), ("11", "11.1.0")])
@pytest.mark.parametrize("cuda_graph", [False, True], ids=["enqueued", "graph"])
def test_every_version_answers_as_onnx_runtime_does(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch,
    family: str, version: str, cuda_graph: bool,
) -> None:  # fmt: skip
    install(monkeypatch, family, cuda, Behaviour())
    reference = OnnxRuntimeSession(exported["open"], threads=1)
    plan = plan_of(exported["open"], tmp_path, version=version)
    with TensorRTSession(plan, cuda_graph=cuda_graph) as session:
        assert (session.provider, session.batch, session.batches) == (f"tensorrt {version}", None, (1, 4))
        assert (session.path, session.metadata, session.info) == (plan, reference.metadata, reference.info)
        # Batches that grow and shrink, so that what an earlier one left behind would be seen.
        for chosen in ([0, 1], [2, 3], [1], [3, 2, 1, 0], [0], [2, 1]):
            same(session.predict(IMAGES[chosen]), reference.predict(IMAGES[chosen]))
            assert session.cuda_graph == cuda_graph


def test_rtx_answers_too(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "rtx", cuda, Behaviour(), Gpu("RTX 3060", "sm_86", "580.1"))
    plan = plan_of(exported["fixed"], tmp_path, builder="tensorrt_rtx", version="1.7.1", target="sm_86", gpu=None)
    with TensorRTSession(plan) as session:
        same(session.predict(IMAGES[:2]), OnnxRuntimeSession(exported["fixed"]).predict(IMAGES[:2]))
        assert (session.provider, session.batch, session.batches) == ("tensorrt_rtx 1.7.1", 2, (2, 2))


def test_an_answer_is_the_callers_own(plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the next run nor the end of the session, which gives the pinned memory back, changes it."""
    install(monkeypatch, "10.3", cuda, Behaviour())
    session = TensorRTSession(plans["open"])
    first = session.run_raw(IMAGES[:2])
    copies = [each.copy() for each in first]
    session.run_raw(IMAGES[2:])
    session.close()
    for one, other in zip(first, copies, strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(EngineError, match="the session was closed"):
        session.run_raw(IMAGES[2:])


def test_the_order_on_the_stream(plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events around the copy in, the inference and the four copies out; one wait, before anything is read."""
    install(monkeypatch, "10.3", cuda, Behaviour())
    with TensorRTSession(plans["open"]) as session:
        session.run_raw(IMAGES[:2])
        cuda.calls.clear()
        before = perf_counter_ns()
        _, split = session.run_split(IMAGES[2:])
        whole = perf_counter_ns() - before
    record, copy = "cudaEventRecord", "cudaMemcpyAsync"
    assert cuda.calls[:12] == [
        *(record, copy, record, "execute_async_v3", record, *[copy] * 4, record),
        *("cudaStreamSynchronize", "cudaEventElapsedTime"),
    ]
    # By the device's clock a copy takes 1,000 ns and the inference 2,000.
    assert split.gpu == 2_000
    assert split.copy_in is not None
    assert split.copy_out is not None
    assert split.copy_in > 1_000
    assert split.copy_out > 4_000
    assert split.infer > 0
    assert split.copy_in + split.infer + split.copy_out <= whole


def test_buffers_are_made_once_for_the_greatest_batch(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    with TensorRTSession(plans["open"]) as session:
        taken = sum(map(len, cuda.memory.values()))
        assert taken == sum(map(len, cuda.pinned.values())) == DEVICE_BYTES
        weights = plans["open"].stat().st_size
        assert session.device_memory_mb == round((weights + CONTEXT_BYTES + DEVICE_BYTES) / 1e6, 1)
        for n in (1, 4, 2):
            session.run_raw(IMAGES[:n])
    assert [cuda.calls.count(name) for name in ("cudaMalloc", "cudaHostAlloc", "cudaEventCreate")] == [5, 5, 4]


def test_only_what_a_batch_holds_is_copied(plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    copy = Cuda.cudaMemcpyAsync

    def noted(self: Cuda, dst: int, src: int, count: int, kind: Any, stream: Any) -> Any:
        sizes.append(count)
        return copy(self, dst, src, count, kind, stream)

    noted.__name__ = "cudaMemcpyAsync"
    monkeypatch.setattr(Cuda, "cudaMemcpyAsync", noted)
    install(monkeypatch, "10.3", cuda, Behaviour())
    with TensorRTSession(plans["open"]) as session:
        session.run_raw(IMAGES[:1])
    assert sizes == [3 * 64 * 96, 100 * 16, 100 * 4, 100 * 4, 4]


def test_all_is_given_back_in_the_right_order(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    session = TensorRTSession(plans["fixed"], cuda_graph=True)
    session.run_raw(IMAGES[:2])
    cuda.calls.clear()
    session.close()
    assert list(dict.fromkeys(cuda.calls)) == [
        *("cudaStreamSynchronize", "cudaGraphExecDestroy", "~context", "~engine"),
        *("cudaEventDestroy", "cudaFree", "cudaFreeHost", "cudaStreamDestroy"),
    ]
    assert cuda.live == 0
    cuda.calls.clear()
    session.close()
    assert cuda.calls == []


def test_a_session_that_is_forgotten_gives_all_back(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    session = TensorRTSession(plans["fixed"])
    assert cuda.live
    del session
    assert cuda.live == 0


@pytest.mark.parametrize(
    ("name", "batch", "range_"), [("fixed", 1, None), ("open", 5, "1 to 4"), ("open", 0, "1 to 4")]
)
def test_another_batch_is_refused(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch, name: str, batch: int, range_: str | None
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    with TensorRTSession(plans[name]) as session:
        said = f"built for batches of {range_}, got {batch}" if range_ else r"takes uint8 of shape \(2, 3, 64, 96\)"
        images = np.zeros((batch, 3, 64, 96), np.uint8)
        with pytest.raises(EngineError if range_ else ExportError, match=said):
            session.predict(images)
        with pytest.raises(EngineError, match="built for batches of"):
            session.run_raw(images)
        same(session.predict(IMAGES[:2]), OnnxRuntimeSession(plans[name]).predict(IMAGES[:2]))  # none the worse for it


def test_a_batch_that_was_not_taken_leaves_nothing_behind(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context may have half taken it: the next batch is set again, though it is the one of before."""
    does = Behaviour()
    install(monkeypatch, "10.3", cuda, does)
    with TensorRTSession(plans["open"]) as session:
        session.run_raw(IMAGES[:2])
        does.takes_shape = False
        with pytest.raises(EngineError, match="cannot take a batch of 1"):
            session.run_raw(IMAGES[:1])
        does.takes_shape = True
        same(session.predict(IMAGES[2:]), OnnxRuntimeSession(plans["open"]).predict(IMAGES[2:]))


# --- CUDA graphs


def test_a_graph_is_captured_once_for_a_batch(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    with TensorRTSession(plans["open"], cuda_graph=True) as session:
        assert not session.cuda_graph
        for n in (2, 2, 2, 1, 1):
            session.run_raw(IMAGES[:n])
        # For each of the two batches: run once, then captured.
        assert (cuda.calls.count("execute_async_v3"), cuda.calls.count("cudaGraphLaunch")) == (4, 5)
        assert (len(cuda.executables), len(cuda.graphs)) == (1, 0)
        assert (session.cuda_graph, session.cuda_graph_error) == (True, None)


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaGraphInstantiate", None])
def test_what_cannot_be_captured_runs_without_a_graph(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch, call: str | None
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour(capturable=call is not None))
    cuda.fails = {call: 1} if call else {}
    with TensorRTSession(plans["open"], cuda_graph=True) as session:
        same(session.predict(IMAGES[:2]), OnnxRuntimeSession(plans["open"]).predict(IMAGES[:2]))
        assert not session.cuda_graph
        said = (
            f"{call}: the text of 700" if call else r"cudaStreamEndCapture: the text of 901, .*\(no room at the inn\)$"
        )
        assert re.match(said, str(session.cuda_graph_error))
        assert cuda.graphs == cuda.executables == set()
        assert ("cudaGetLastError" in cuda.calls) == (call is None)


# --- what fails

CALLS = {
    "cudaStreamCreateWithFlags": (1,),
    "cudaMemGetInfo": (1,),
    "cudaHostAlloc": (1, 3, 5),
    "cudaMalloc": (1, 5),
    "cudaEventCreate": (1, 4),
    "cudaEventRecord": (1, 2, 4),
    "cudaMemcpyAsync": (1, 2, 5),
    "cudaStreamSynchronize": (1,),
    "cudaEventElapsedTime": (1, 3),
}


@pytest.mark.parametrize(("call", "time"), [(call, time) for call, times in CALLS.items() for time in times])
def test_a_call_that_cuda_refuses_is_an_error_in_words(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch, call: str, time: int
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    cuda.fails = {call: time}

    def use() -> None:
        with TensorRTSession(plans["open"]) as session:
            session.predict(IMAGES[:2])

    with pytest.raises(EngineError, match=f"^{call}: the text of 700, cudaErrorIllegalAddress; open the plan again"):
        use()
    assert cuda.live == 0


def test_a_launch_that_cuda_refuses(plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    cuda.fails = {"cudaGraphLaunch": 2}
    with TensorRTSession(plans["fixed"], cuda_graph=True) as session:
        session.run_raw(IMAGES[:2])
        with pytest.raises(EngineError, match=r"^cudaGraphLaunch: the text of 700"):
            session.run_raw(IMAGES[:2])


def test_too_little_memory_says_what_helps(plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    cuda.fails, cuda.error = {"cudaMalloc": 2}, cuda.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(EngineError, match=r"cudaMalloc: .*close what else uses the GPU, or build the plan for smaller"):
        TensorRTSession(plans["fixed"])


def test_a_device_that_refuses_to_take_back_stops_nobody(
    plans: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = Cuda()  # not the fixture: what a dead device holds, it holds
    install(monkeypatch, "10.3", cuda, Behaviour())
    session = TensorRTSession(plans["fixed"])
    cuda.fails = {"cudaFree": 1, "cudaStreamSynchronize": 1, "cudaEventDestroy": 2}
    session.close()
    assert (len(cuda.memory), len(cuda.events), len(cuda.pinned), len(cuda.streams)) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"deserialises": False}, "cannot deserialise it"),
        ({"makes_context": False}, "cannot make room for running it"),
        ({"takes_address": False}, "cannot use a buffer for images"),
        ({"takes_shape": False}, "cannot take a batch of 2"),
        ({"executes": False}, "cannot run it"),
    ],
)
def test_what_tensorrt_refuses_is_told_in_its_own_words(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch, behaviour: dict[str, Any], said: str
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour(**behaviour))

    def use() -> None:
        with TensorRTSession(plans["open"]) as session:
            session.run_raw(IMAGES[:2])

    with pytest.raises(EngineError, match=rf"open\.plan: TensorRT {said} \(no room at the inn\); build it here: "):
        use()
    assert cuda.live == 0


# --- what is not opened


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "10.13.0"}, "it was built by tensorrt 10.13.0, and tensorrt 10.3.0 would load it"),
        ({"target": "sm_110"}, r"it was built for sm_110, and the GPU here \(Orin\) is sm_87"),
        ({"plan_sha256": "a" * 64}, "the one or the other was replaced"),
        ({"builder": "os"}, "built by 'os', which is none of tensorrt, tensorrt_rtx"),
        ({"builder": None, "version": None}, "built by None"),
    ],
)
def test_a_plan_for_another_machine_is_refused_with_the_command_that_rebuilds(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], said: str,
) -> None:  # fmt: skip
    install(monkeypatch, "10.3", cuda, Behaviour())
    with pytest.raises(EngineError, match=rf"fixed\.plan: .*{said}.*; build it here: `frs-pipeline run CONFIG --force"):
        TensorRTSession(plan_of(exported["fixed"], tmp_path, **changes))
    assert cuda.calls == []  # nothing of it came near the device


def test_a_plan_whose_library_is_not_here(exported: dict[str, Path], tmp_path: Path) -> None:
    plan = plan_of(exported["fixed"], tmp_path, builder="tensorrt_rtx" if _has("tensorrt") else "tensorrt")
    if not _has("tensorrt_rtx") or not _has("tensorrt"):
        with pytest.raises(RuntimeMissing, match=r"built it and cannot be imported here .*--system-site-packages"):
            TensorRTSession(plan)


def test_files_that_are_missing_or_of_others(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    plan = plan_of(exported["fixed"], tmp_path)
    plan.unlink()
    with pytest.raises(EngineError, match=r"fixed\.plan: cannot be read \(No such file"):
        TensorRTSession(plan)
    sidecar_path(plan).unlink()
    with pytest.raises(EngineError, match=r"fixed\.plan\.json: cannot be read \(No such file"):
        TensorRTSession(plan)
    properties = {e.key: e.value for e in onnx.load(exported["fixed"]).metadata_props if e.key != "height"}
    plan = plan_of(exported["fixed"], tmp_path, properties=properties)
    with pytest.raises(ExportError, match=r"fixed\.plan: its metadata lacks height"):
        TensorRTSession(plan)


@pytest.mark.parametrize(("key", "value"), [("height", "96"), ("detections", "99")])
def test_a_plan_of_other_tensors_than_its_sidecar_promises(
    exported: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    properties = {entry.key: entry.value for entry in onnx.load(exported["fixed"]).metadata_props} | {key: value}
    with pytest.raises(EngineError, match=r"fixed\.plan: its sidecar promises the tensors .*the plan has"):
        TensorRTSession(plan_of(exported["fixed"], tmp_path, properties=properties))


@pytest.mark.parametrize("images", [IMAGES.astype(np.float32), IMAGES[0], IMAGES[:, :, :32]])
def test_other_images_are_refused(
    plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch, images: Any
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    with (
        TensorRTSession(plans["open"]) as session,
        pytest.raises(ExportError, match=r"takes uint8 of shape \('N', 3, 64, 96\)"),
    ):
        session.predict(images)


# --- through the command line


def test_predict_takes_a_plan(
    exported: dict[str, Path], plans: dict[str, Path], tmp_path: Path, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    picture = tmp_path / "picture.png"
    Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(picture)

    def detected(artifact: Path, out: str) -> Any:
        (found,) = run_predict(artifact, [picture], tmp_path / out, 0.1)
        return found["detections"]

    of_plan = detected(plans["fixed"], "a")
    assert len(of_plan) >= 10
    assert of_plan == detected(exported["fixed"], "b")
    assert cuda.live == 0


def test_a_plan_is_known_by_its_suffix(plans: dict[str, Path], cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "10.3", cuda, Behaviour())
    with open_session(plans["open"]) as session:
        assert isinstance(session, TensorRTSession)


# --- against the real libraries


def _has(module: str) -> bool:
    try:
        __import__(module)
    except (ImportError, OSError):
        return False
    return True


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
