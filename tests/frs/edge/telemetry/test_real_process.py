"""This machine, read for half a second beside work of ours; and the same without the packages that read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from frs.edge.telemetry import Sample, pick_rail, sampler
from frs.edge.telemetry.collect import PollingSampler
from frs.edge.telemetry.machine import MachineSource
from frs.edge.telemetry.sample import FIELDS, without


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def test_this_machine_beside_work() -> None:
    threads = threading.active_count()
    with PollingSampler(MachineSource(without_gpu="none is looked for"), 0.05) as telemetry:
        work(0.5)
        while len(telemetry.samples()) < 5:
            time.sleep(0.01)
    samples = telemetry.samples()
    assert telemetry.source == "psutil"
    assert threading.active_count() == threads
    assert all(earlier.time_ns < later.time_ns for earlier, later in pairwise(samples))
    loads = [sample.cpu_load for sample in samples if sample.cpu_load is not None]
    assert len(loads) == len(samples)
    assert all(0 <= load <= 100 for load in loads)
    assert max(loads) > 40 / (os.cpu_count() or 1)  # one core was ours
    for sample in samples:
        assert sample.memory_used_mb is not None
        assert 1 < sample.memory_used_mb < psutil.virtual_memory().total / 1e6
        assert all(-40 < celsius < 130 for celsius in sample.temperature_c.values())
        assert all(100 < mhz < 8000 for mhz in sample.clocks_mhz.values())
        assert (sample.power_mw, sample.gpu_load, sample.throttled) == ({}, None, None)
    absent = {name for name in FIELDS if without(samples, name)}
    assert set(telemetry.missing) == absent
    assert {"power_mw", "gpu_load", "throttled"} <= absent
    assert telemetry.missing["gpu_load"] == "none is looked for"
    assert pick_rail(samples) == (None, "no power rail is read on this machine")


def test_what_this_machine_is_read_through() -> None:
    with sampler(0.05) as telemetry:
        time.sleep(0.2)
    assert telemetry.source in ("tegrastats", "nvml", "psutil")
    assert all(telemetry.missing.values())


WITHOUT = """
import json, sys, time
sys.modules["psutil"] = sys.modules["pynvml"] = None
from frs.edge.telemetry import conditions, sampler
with sampler(0.01) as telemetry:
    time.sleep(0.1)
print(json.dumps([telemetry.source, telemetry.missing, conditions().device]))
"""


def test_without_psutil_and_nvidia_ml_py(tmp_path: Path) -> None:
    ours = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    source, missing, device = json.loads(ours.stdout)
    assert source == "psutil"
    assert set(missing) == set(FIELDS)
    for name in ("cpu_load", "memory_used_mb", "temperature_c", "clocks_mhz"):
        assert missing[name] == "psutil is not installed"
    assert device


def test_a_jetson_whose_tegrastats_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, text in {
        "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
        "sys/class/thermal/cooling_device0/type": "devfreq-17000000.gpu\n",
        "sys/class/thermal/cooling_device0/cur_state": "2\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with sampler(0.02, tmp_path) as telemetry:
        while not telemetry.samples():
            time.sleep(0.01)
    assert telemetry.source == "psutil"
    assert telemetry.samples()[0].throttled is True
    why = "tegrastats is not on PATH; in a container, mount /usr/bin/tegrastats"
    assert telemetry.missing["gpu_load"] == why
    assert telemetry.missing["power_mw"].endswith(why)


class Broken:
    """Works twice, as a sensor that is unplugged."""

    name = "psutil"

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.reads = 0
        self.closed = False

    def read(self, time_ns: int) -> Sample:
        self.reads += 1
        if self.reads > 2:
            raise OSError("unplugged")
        return Sample(time_ns, cpu_load=5)

    def close(self) -> None:
        self.closed = True


def test_a_source_that_breaks_is_a_reason(recwarn: pytest.WarningsRecorder) -> None:
    source = Broken()
    with PollingSampler(source, 0.01) as telemetry:
        while "power_mw" not in telemetry.missing or "failed" not in telemetry.missing["power_mw"]:
            time.sleep(0.01)
    assert telemetry.missing == dict.fromkeys(FIELDS, "psutil failed: OSError: unplugged")
    assert [sample.cpu_load for sample in telemetry.samples()] == [5]
    assert source.closed
    assert not recwarn.list
