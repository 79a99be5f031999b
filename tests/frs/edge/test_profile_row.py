"""Rows of the profile from measurements made by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frs.edge.measured import Artifact, Block, Measured, Run
from frs.edge.profile_row import Beside, profile_row
from frs.edge.telemetry import Conditions, Sample
from frs.edge.telemetry.power import GPU_BOARD
from frs.edge.timing import WarmUp

S, MS = 1_000_000_000, 1_000_000
CORES = os.cpu_count() or 1
UNKNOWN = Conditions("a CPU", None, None, None, {"power_mode": "no modes", "clocks": "no limits"})
NOTHING = Beside([], "psutil", {"cpu_load": "no psutil", "throttled": "no throttling"}, UNKNOWN, idle=None)


@pytest.fixture
def measured(tmp_path: Path) -> Measured:
    """Eight blocks of ten runs of 50 ms, each half a second long, a second apart, the first at 10 s."""
    file = tmp_path / "student.onnx"
    file.write_bytes(bytes(2_500_000))
    run = Run(50 * MS, 4 * MS, 45 * MS, None, 45 * MS, None, 1 * MS, None)
    blocks = [Block([run] * 10, (10 + i) * S, (10 + i) * S + S // 2, cpu_ns=S // 4) for i in range(8)]
    return Measured(
        Artifact("student", "fp32", "onnxruntime", file),
        batch=2,
        provider="CPUExecutionProvider",
        threads=2,
        cold_start_ms=70.5,
        opened_ns=(5 * S, 6 * S),
        warm_up=WarmUp(True, 30, 0.3),
        blocks=blocks,
        peak_mb=38.0,
        device_mb=None,
    )


def engine(measured: Measured) -> Measured:
    """The same on a GPU."""
    run = Run(50 * MS, 4 * MS, 45 * MS, 2 * MS, 40 * MS, 3 * MS, 1 * MS, 38 * MS)
    blocks = [replace(block, runs=[run] * 10) for block in measured.blocks]
    artifact = replace(measured.artifact, runtime="tensorrt")
    return replace(measured, artifact=artifact, blocks=blocks, threads=None, device_mb=210.0)


def sampled(**fields: Any) -> list[Sample]:
    """A sample every 100 ms from 0 to 20 s."""
    return [Sample(i * S // 10, **fields) for i in range(201)]


def nulls(row: dict[str, Any]) -> set[str]:
    return {key for key in row if row[key] is None} | {
        f"stages_ms.{k}" for k, v in row["stages_ms"].items() if v is None
    }


def test_figures_by_hand(measured: Measured) -> None:
    row = profile_row(measured, NOTHING)
    assert {key: row[key] for key in ("model", "runtime", "precision", "batch", "threads", "device", "provider")} == {
        "model": "student", "runtime": "onnxruntime", "precision": "fp32", "batch": 2, "threads": 2, "device": "a CPU",
        "provider": "CPUExecutionProvider",
    }  # fmt: skip
    assert row["latency_ms"] == {
        "p50": 50.0, "p50_interval": [50.0, 50.0], "p90": 50.0, "p95": 50.0, "p99": 50.0, "mean": 50.0, "min": 50.0,
        "std": 0.0, "runs": 80, "seconds": 4.0,
    }  # fmt: skip
    assert row["stages_ms"] == {"preprocess": 4.0, "copy_in": None, "infer": 45.0, "copy_out": None, "postprocess": 1.0}
    assert row["throughput_ips"] == 40.0
    assert (row["cold_start_ms"], row["peak_memory_mb"], row["artifact_mb"]) == (70.5, 38.0, 2.5)
    assert row["warnings"] == []


def test_every_null_has_its_reason_and_nothing_else_has_one(measured: Measured) -> None:
    for each, beside in (
        (measured, NOTHING),
        (engine(measured), NOTHING),
        (replace(measured, peak_mb=None), replace(NOTHING, source="tegrastats")),
        (measured, replace(NOTHING, samples=sampled(power_mw={"VDD_IN": 5000.0}), idle=(1 * S, 1 * S + 1))),
        (measured, replace(NOTHING, samples=sampled(power_mw={"VDD_IN": 5000.0}), idle=(1 * S, 3 * S))),
        (measured, replace(NOTHING, samples=sampled(power_mw={"VDD_CPU": 5000.0}))),
    ):
        row = profile_row(each, beside)
        assert set(row["missing"]) == nulls(row)
        assert all(row["missing"].values()), row["missing"]
    assert profile_row(measured, NOTHING)["missing"]["power_mode"] == "no modes"
    assert profile_row(measured, NOTHING)["missing"]["other_load"] == "no psutil"


def test_an_engine_has_copies_and_the_gpus_own_time_and_no_threads(measured: Measured) -> None:
    row = profile_row(engine(measured), NOTHING)
    assert row["stages_ms"] == {"preprocess": 4.0, "copy_in": 2.0, "infer": 40.0, "copy_out": 3.0, "postprocess": 1.0}
    assert row["gpu_ms"] == {"p50": 38.0, "p99": 38.0}
    assert row["device_memory_mb"] == 210.0
    assert row["threads"] is None


def test_energy_is_above_idle_and_not_the_neighbours(measured: Measured) -> None:
    """5 W idle, 7 W in the blocks: 2 W x 50 ms = 100 mJ a call. A neighbour draws 20 W until each block, and the samples still
    tell so in the block's first tenth of a second."""

    def power(time_ns: int) -> float:
        if time_ns < 9 * S:
            return 5000.0
        return 7000.0 if S // 10 < time_ns % S <= S // 2 else 20_000.0

    samples = [Sample(t, power_mw={"VDD_IN": power(t)}) for t in range(0, 20 * S, S // 100)]
    row = profile_row(measured, replace(NOTHING, samples=samples, source="tegrastats", idle=(1 * S, 3 * S)))
    assert row["power_idle_w"] == 5.0
    assert row["energy_rail"] == "VDD_IN"
    assert row["energy_mj"] == pytest.approx(100.0)


def test_a_gpus_rail_tells_nothing_of_a_file_on_the_cpu(measured: Measured) -> None:
    power = [
        Sample(t, power_mw={GPU_BOARD: 30_000.0 if t < 9 * S else 90_000.0}, throttled=False)
        for t in range(0, 20 * S, S // 10)
    ]
    beside = replace(NOTHING, samples=power, source="nvml", idle=(1 * S, 3 * S))
    row = profile_row(measured, beside)
    assert (row["energy_mj"], row["throttled"]) == (None, None)
    assert "ran on the CPU" in row["missing"]["energy_mj"]
    assert "ran on the CPU" in row["missing"]["throttled"]
    row = profile_row(engine(measured), beside)
    assert row["energy_mj"] == pytest.approx(60_000 * 0.05)
    assert row["throttled"] is False


def test_blocks_shorter_than_a_sample_tell_no_energy(measured: Measured) -> None:
    short = replace(measured, blocks=[replace(b, end_ns=b.start_ns + 50 * MS) for b in measured.blocks])
    row = profile_row(short, replace(NOTHING, samples=sampled(power_mw={"VDD_IN": 5000.0}), idle=(1 * S, 3 * S)))
    assert row["energy_mj"] is None
    assert row["power_idle_w"] == 5.0


def test_other_load_is_what_our_own_processes_did_not_use(measured: Measured) -> None:
    """Half a core of ours. The samples between the blocks belong to others' blocks."""
    ours = 100 * 0.5 / CORES
    samples = [Sample(t, cpu_load=ours + 8 if t % S <= S // 2 else 100.0) for t in range(0, 20 * S, S // 10)]
    assert profile_row(measured, replace(NOTHING, samples=samples))["other_load"] == pytest.approx(8, abs=0.1)
    assert profile_row(measured, replace(NOTHING, samples=sampled(cpu_load=0.0)))["other_load"] == 0.0


def test_a_jetsons_memory_is_what_opening_took_of_it(measured: Measured) -> None:
    samples = [
        Sample(t, memory_used_mb=2000.0 if t <= 5 * S else 2350.0 if t <= 6 * S else 9000.0)
        for t in range(0, 20 * S, S // 10)
    ]
    row = profile_row(engine(measured), replace(NOTHING, samples=samples, source="tegrastats"))
    assert row["device_memory_mb"] == 350.0


def test_temperature_is_the_hottest_sensors_at_start_and_end(measured: Measured) -> None:
    samples = [
        Sample(t, temperature_c={"cpu": 40.0 + t / S, "tj": 41.0 + t / S, "board": 30.0})
        for t in range(0, 30 * S, S // 10)
    ]
    row = profile_row(measured, replace(NOTHING, samples=samples))
    assert row["temperature_c"] == {"start": 46.0, "end": 58.5}  # at 5 s, and at 17.5 s


def warnings(measured: Measured, **changes: Any) -> list[str]:
    found: list[str] = profile_row(measured, replace(NOTHING, **changes))["warnings"]
    return found


def test_each_warning_fires_and_says_what_to_do_or_what_was(measured: Measured) -> None:
    (clocks,) = warnings(measured, conditions=replace(UNKNOWN, clocks="not locked"))
    assert "clocks were not locked" in clocks
    (throttled,) = warnings(measured, samples=sampled(throttled=True))
    assert "throttled" in throttled
    (load,) = warnings(measured, samples=sampled(cpu_load=100 * 0.5 / CORES + 10.1))
    assert "more than 10%" in load
    (unstable,) = warnings(replace(measured, warm_up=WarmUp(False, 100, 5.1)))
    assert "warm-up" in unstable
    drifting = [
        replace(block, runs=[run._replace(total=(50 + i) * MS) for run in block.runs])
        for i, block in enumerate(measured.blocks)
    ]
    (wide,) = warnings(replace(measured, blocks=drifting))
    assert "wider than 5%" in wide


def test_nothing_is_warned_of_at_the_limits(measured: Measured) -> None:
    locked = replace(UNKNOWN, clocks="locked")
    samples = sampled(throttled=False, cpu_load=100 * 0.5 / CORES + 10.0)
    assert warnings(measured, conditions=locked, samples=samples) == []


def test_throttling_elsewhere_is_not_ours(measured: Measured) -> None:
    samples = [Sample(t, throttled=t < 9 * S) for t in range(0, 20 * S, S // 10)]
    assert profile_row(measured, replace(NOTHING, samples=samples))["throttled"] is False
