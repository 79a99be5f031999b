"""A plan on a device that is not there: see `stand_in` for what that can show. The answers are those of ONNX Runtime on
the same graph, so that a byte which goes astray is seen."""

from __future__ import annotations

import re
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest

from frs.edge.machine import Gpu
from frs.edge.ort import OnnxRuntimeSession
from frs.edge.trt import TensorRTSession
from frs.errors import EngineError, ExportError
from tests.frs.edge.stand_in import Behaviour, Cuda, install
from tests.frs.edge.stand_in.tensorrt import CONTEXT_BYTES
from tests.frs.edge.trt_lab import DEVICE_BYTES, IMAGES, plan_of, same


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
