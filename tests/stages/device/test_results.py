from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frs.errors import RemoteError
from pipeline.errors import Busy
from stages.device.results import Figures, checked, filled, is_page, machine, parse, read
from tests.stages.device.lab import PAGE, ROOT, SHA256, device


def put(run_dir: Path, name: str, text: str = "old") -> Path:
    path = run_dir / "devices" / name / "device.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def folders(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "devices").iterdir() if path.is_dir())


def test_results_are_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with filled(tmp_path, "jetson") as (work, results):
        (work / "bundle.tar").write_text("large")
        (results / "device.json").write_text("new")
        assert folders(tmp_path) == [".jetson.work"]
    assert folders(tmp_path) == ["jetson"]
    assert [path.name for path in (tmp_path / "devices" / "jetson").iterdir()] == ["device.json"]


@pytest.mark.parametrize("error", [RemoteError, KeyboardInterrupt])
def test_results_stay_where_none_come_in_their_place(tmp_path: Path, error: type[BaseException]) -> None:
    path = put(tmp_path, "jetson")

    def half() -> None:
        with filled(tmp_path, "jetson") as (_, results):
            (results / "device.json").write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_text() == "old"
    assert folders(tmp_path) == ["jetson"]


def test_results_outlive_a_kill_between_the_two_renames(tmp_path: Path) -> None:
    put(tmp_path, ".jetson.before")
    (tmp_path / "devices" / ".jetson.work").mkdir()
    with pytest.raises(RemoteError), filled(tmp_path, "jetson"):
        raise RemoteError
    assert (tmp_path / "devices" / "jetson" / "device.json").read_text() == "old"
    assert folders(tmp_path) == ["jetson"]


def test_one_push_to_a_machine_at_a_time(tmp_path: Path) -> None:
    other = (
        "import sys; from pathlib import Path; from stages.device.results import filled\n"
        "with filled(Path(sys.argv[1]), 'jetson'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", other, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(Busy, match=f"process {process.pid} pushes to this machine already"),
            filled(tmp_path, "jetson"),
        ):
            pass
        with filled(tmp_path, "nano"):  # another machine is another matter
            pass
        process.kill()


def test_what_is_read_of_a_device() -> None:
    document = device(
        profiles=[
            _profile(batch=4, p50=9.0), _profile(batch=1, p50=3.0, warnings=["clocks not locked"]),
            _profile(runtime="tensorrt", p50=1.0, energy_mj=5.0, power_mode="MAXN", temperature_c={"start": 40.4, "end": 51}),
        ],
        files=[{"model": "student", "kind": "fp32", "file": "student.onnx", "bytes": 1, "sha256": "b" * 64}],
    )  # fmt: skip
    found = machine("jetson", parse(json.dumps(document)))
    assert found.figures["student", "fp32", "onnxruntime"] == Figures(3.0, 4.0, 50.0, None, None, 32.5, 1234, True)
    assert found.figures["student", "fp32", "tensorrt"] == Figures(1.0, 4.0, 50.0, None, 5.0)
    assert found.figures["teacher", "fp32", "onnxruntime"] == Figures(ap=40.0, images=1234)
    assert found.files == {("student", "fp32"): "b" * 64}
    assert found.state == {"power mode": "MAXN", "temperature, °C": "40 to 51"}
    assert found.warnings == ("clocks not locked",)


def _profile(runtime: str = "onnxruntime", batch: int = 1, p50: float = 2.0, **changes: Any) -> dict[str, Any]:
    made = {
        "model": "student", "precision": "fp32", "runtime": runtime, "batch": batch, "peak_memory_mb": 50.0,
        "latency_ms": {"p50": p50, "p99": 4.0},
    }  # fmt: skip
    return {**made, **changes}


HOSTILE: list[dict[str, Any]] = [
    {"schema": 2},
    {"kind": "report"},
    {"device": 5},
    {"created": None},
    {"profiles": [{**_profile(), "model": ["x"]}]},
    {"profiles": [{**_profile(), "batch": "1"}]},
    {"profiles": [{**_profile(), "latency_ms": {"p50": "fast", "p99": 1}}]},
    {"profiles": [{**_profile(), "latency_ms": {"p50": True, "p99": 1}}]},
    {"profiles": [{**_profile(), "latency_ms": {"p50": 1e999, "p99": 1}}]},
    {"profiles": [{**_profile(), "energy_mj": 10**400}]},
    {"profiles": [{**_profile(), "warnings": [{}]}]},
    {"profiles": [{**_profile(), "temperature_c": {"start": "hot"}}]},
    {"profiles": 7},
    {"accuracy": [{}]},
    {"files": [{"kind": "fp32"}]},
    {"gates": {"x": 1}},
]


@pytest.mark.parametrize("changes", HOSTILE, ids=str)
def test_a_document_that_is_none(changes: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(device(**changes))
    with pytest.raises(RemoteError, match=r"jetson: its device\.json is damaged, or was written by another version"):
        checked("jetson", text, SHA256)
    put(tmp_path, "jetson", text)
    devices, faults = read(tmp_path)
    assert devices == []
    assert len(faults) == 1
    assert str(tmp_path / "devices" / "jetson" / "device.json") in faults[0]


def test_devices_that_are_read(tmp_path: Path) -> None:
    for name in ("nano", "agx", ".agx.work"):
        put(tmp_path, name, json.dumps(device(device=name)))
    (tmp_path / "devices" / ".agx.lock").touch()
    devices, faults = read(tmp_path)
    assert [each.name for each in devices] == ["agx", "nano"]
    assert faults == []


def test_a_run_without_devices(tmp_path: Path) -> None:
    assert read(tmp_path) == ([], [])


@pytest.mark.parametrize(
    "text", ["", "<script>" + PAGE, PAGE.replace("default-src 'none'", "default-src *"), " " + PAGE]
)
def test_a_page_that_does_not_bind_itself(text: str) -> None:
    assert is_page(PAGE)
    assert "default-src 'none'" in PAGE
    assert not is_page(text)
