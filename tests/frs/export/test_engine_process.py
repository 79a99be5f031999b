"""What becomes of a build whose process crashes, hangs, is interrupted, or finds no library: real processes, no NVIDIA."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frs.edge.machine import Gpu, find_gpu
from frs.edge.sidecar import Sidecar, sidecar_path
from frs.export import _build_engine, engine, timing_cache
from frs.export.engine import build_engine
from frs.export.limited import Ended, run_module

pytestmark = pytest.mark.skipif(find_gpu() is not None, reason="with a GPU, TensorRT itself may be what builds")

ORIN = Gpu("Orin", "sm_87", "540.4.0")
LIBRARY = """
import os, signal, subprocess, sys, time
__version__ = "0.1"
class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)
def Builder(log):
    log.log(log.WARNING, "a first warning")
    log.log(log.ERROR, "out of luck")
    {fate}
"""
HANGS = """
    sleeper = subprocess.Popen(["sleep", "600"])
    with open("{pids}.partial", "w") as file:
        file.write(f"{{os.getpid()}} {{sleeper.pid}}")
    os.rename("{pids}.partial", "{pids}")
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for x.onnx and x.plan; what lies in `library` beside it is imported before what is installed."""
    (tmp_path / "library").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"))
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "x.onnx").touch()
    return folder


def library(place: Path, text: str) -> None:
    (place.parent / "library" / "tensorrt_rtx.py").write_text(text)


def pids(place: Path) -> list[int]:
    """Of the builder that hangs and of the process that it has started."""
    path = place.parent / "pids"
    wait_for(path.exists)
    return [int(pid) for pid in path.read_text().split()]


def gone(pid: int) -> bool:
    """A process that nobody waits for stays in the table, as a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    """Patient: what hangs beyond this is a fault, not a slow machine."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it does not come true")


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGSEGV, "signal 11 (SIGSEGV): out of luck"),
        (
            signal.SIGKILL,
            "signal 9 (SIGKILL), as the system does where memory runs out; lower engine.workspace_mb: out of luck",
        ),
    ],
)
def test_a_crash_is_a_report_with_the_librarys_last_words(number: signal.Signals, told: str, place: Path) -> None:
    library(place, LIBRARY.format(fate=f"os.kill(os.getpid(), {int(number)})"))
    report = build_engine(place / "x.onnx", place / "x.plan", properties={"a": "1"})
    assert (report.proven, report.message) == ("failed", f"the builder's process ended with {told}")
    assert (report.builder, report.version, report.plan_sha256) == ("tensorrt_rtx", "0.1", None)
    assert Sidecar.of(place / "x.plan").log == ["a first warning", "out of luck"]
    assert Sidecar.of(place / "x.plan").properties == {"a": "1"}
    assert sorted(file.name for file in place.iterdir()) == ["x.onnx", "x.plan.json"]


def test_an_exception_is_a_report(place: Path) -> None:
    library(place, LIBRARY.format(fate="raise TypeError('factory function returned nullptr')"))
    report = build_engine(place / "x.onnx", place / "x.plan", properties={})
    ended = "the builder's process ended with status 1: TypeError: factory function returned nullptr"
    assert (report.proven, report.message) == ("failed", ended)


def test_a_hang_is_stopped_with_all_that_it_started(place: Path) -> None:
    library(place, LIBRARY.format(fate=HANGS.format(pids=place.parent / "pids")))
    report = build_engine(place / "x.onnx", place / "x.plan", properties={}, timeout_s=3)
    assert report.proven == "failed"
    assert report.message == "the build took longer than 3 s and was stopped; raise engine.timeout_s: out of luck"
    assert (report.builder, report.version) == ("tensorrt_rtx", "0.1")
    builder, sleeper = pids(place)
    assert gone(builder)
    wait_for(lambda: gone(sleeper))  # killed, and waited for by whoever inherits it
    assert sorted(file.name for file in place.iterdir()) == ["x.onnx", "x.plan.json"]


def test_a_build_that_is_interrupted_leaves_nothing(place: Path) -> None:
    library(place, LIBRARY.format(fate=HANGS.format(pids=place.parent / "pids")))
    seen: list[int] = []

    def interrupt() -> None:
        seen.extend(pids(place))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        build_engine(place / "x.onnx", place / "x.plan", properties={})
    wait_for(lambda: all(map(gone, seen)))
    assert [file.name for file in place.iterdir()] == ["x.onnx"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_builder_ends_with_the_process_that_asked_for_it(place: Path) -> None:
    library(place, LIBRARY.format(fate=HANGS.format(pids=place.parent / "pids")))
    code = (
        "import pathlib, frs.export.engine as e; p = pathlib.Path(); "
        "e.build_engine(p / 'x.onnx', p / 'x.plan', properties={})"
    )
    source = Path(__file__).parents[3]
    path = os.pathsep.join((str(source), str(place.parent / "library")))
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=place, env={**os.environ, "PYTHONPATH": path})
    builder, sleeper = pids(place)
    parent.kill()
    parent.wait()
    wait_for(lambda: gone(builder))
    os.kill(sleeper, signal.SIGKILL)


def test_without_a_library_there_is_no_engine_and_no_claim(place: Path) -> None:
    library(place, "raise ImportError('blocked')")
    (place / "x.plan").write_bytes(b"of an earlier build")
    sidecar_path(place / "x.plan").write_text("{}")
    report = build_engine(place / "x.onnx", place / "x.plan", properties={})
    assert (report.proven, report.builder, report.target, report.plan_sha256) == (None, None, None, None)
    assert report.message is not None
    assert "tensorrt_rtx cannot be imported (blocked)" in report.message
    assert "pip install" in report.message
    assert [file.name for file in place.iterdir()] == ["x.onnx"]


def test_a_library_that_misses_one_of_its_own_is_none(place: Path) -> None:
    library(place, "import ctypes; ctypes.CDLL('libnvinfer_of_nobody.so.10')")
    report = build_engine(place / "x.onnx", place / "x.plan", properties={})
    assert report.proven is None
    assert "libnvinfer_of_nobody.so.10" in str(report.message)


def test_only_the_last_lines_are_kept(place: Path) -> None:
    (place.parent / "library" / "chatter.py").write_text("for i in range(100_000): print(str(i) * 200)")
    ended = run_module("chatter", folder=place, timeout_s=60)
    assert ended.status == 0
    assert len(ended.lines) == 50
    assert ended.lines[-1] == ("99999" * 200)[:500]


def test_how_a_process_ended_is_said_in_words() -> None:
    assert str(Ended(None, [])) == "its time was up"
    assert str(Ended(3, [])) == "status 3"
    assert str(Ended(-signal.SIGRTMIN - 3, [])).startswith("signal ")


def test_what_a_gpu_took_is_tried_and_its_times_are_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder's answer is made up, as there is no GPU; the process that tries the plan is real, and finds none."""

    def built(_: Any, plan: Path, timeout_s: float) -> dict[str, Any]:
        plan.write_bytes(b"plan")
        (plan.parent / "tensorrt-10.3.0-Orin-sm_87.timing").write_bytes(b"times")
        return {**_build_engine.answer(None, ORIN, "sm_87", "deserialised", None), "builder": "tensorrt"}

    monkeypatch.setattr(engine, "_run_builder", built)
    timings = place.parent / "timings"
    report = build_engine(place / "x.onnx", place / "x.plan", properties={}, timings=timings)
    assert report.proven == "deserialised"
    assert report.message is not None
    assert report.message.startswith("it did not run: ")
    assert "tensorrt None built it and cannot be imported here" in report.message
    assert (place / "x.plan").read_bytes() == b"plan"
    assert (Sidecar.of(place / "x.plan").message, Sidecar.of(place / "x.plan").log) == (report.message, [])
    assert sorted(file.name for file in place.iterdir()) == ["x.onnx", "x.plan", "x.plan.json"]
    assert timing_cache.load(timings / "tensorrt-10.3.0-Orin-sm_87.timing", print) == b"times"
    # Where they cannot be kept, the engine is none the worse.
    blocked = place.parent / "file"
    blocked.touch()
    report = build_engine(place / "x.onnx", place / "x.plan", properties={}, timings=blocked / "timings")
    assert report.proven == "deserialised"
    assert "the timing cache was not kept" in Sidecar.of(place / "x.plan").log[0]
