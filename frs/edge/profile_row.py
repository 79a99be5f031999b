"""A row of the report's `profiles`: what was measured of an artifact, what went on beside it, and whether it may be quoted.

    model, runtime, precision, device, provider, threads, batch
    latency_ms      of a whole batch, end to end: what `frs.edge.timing.summarise` tells, and `seconds`, the timed ones
    stages_ms       medians: preprocess (letterbox), copy_in, infer, copy_out, postprocess (boxes back to the photograph)
    gpu_ms          p50 and p99 of the inference by the GPU's own events
    throughput_ips  images a second, one call after the other
    cold_start_ms   in a fresh process with the runtime imported and the images decoded: opening the file, with the file's
                    pages as the system's cache has them and a GPU's context if there is one, and the first answer
    peak_memory_mb  highest resident memory of the process since, less what it was before: interpreter, runtime and images
                    are not the model's
    device_memory_mb  of the GPU, as the session tells when its warm-up is over; on a Jetson by how much its one memory
                    filled up from before the file was opened until then
    artifact_mb     the file
    energy_mj       of a call, from photograph to boxes, above the machine's idle power; energy_rail: where it was measured;
                    power_idle_w
    power_mode, clocks ("locked", "not locked"), throttled
    temperature_c   the hottest sensor at the start and at the end
    other_load      percent of all cores that other processes used
    warnings        why the row should not be quoted, in sentences
    missing         the reason for every null above, under its name

Megabytes are 10^6 bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frs.edge.machine import find_gpu
from frs.edge.measured import Block, Measured
from frs.edge.telemetry import Conditions, Sample, energy, idle_power, pick_rail
from frs.edge.telemetry.power import GPU_BOARD
from frs.edge.timing import percentile, summarise

OTHER_LOAD_LIMIT = 10.0
INTERVAL_LIMIT = 0.05
LAG_NS = 100_000_000
"""A reading tells of up to so long before its time stamp (`frs.edge.telemetry.power`): in a block's first 100 ms it is still
its neighbour's."""

Known = tuple[Any, str | None]
"""A value, or None and the reason."""


@dataclass(frozen=True)
class Beside:
    """What went on beside the measurement. source, missing: the sampler's; idle: the window in which nothing of ours ran, None
    where there was no rail to be read in it."""

    samples: Sequence[Sample]
    source: str
    missing: Mapping[str, str]
    conditions: Conditions
    idle: tuple[int, int] | None


def profile_row(measured: Measured, beside: Beside) -> dict[str, Any]:
    """The row, as this module describes it."""
    artifact = measured.artifact
    latency = summarise([_milliseconds(block, "total") for block in measured.blocks])
    seconds = sum(block.end_ns - block.start_ns for block in measured.blocks) / 1e9
    on_gpu = artifact.runtime == "tensorrt"
    row: dict[str, Any] = {
        "model": artifact.model,
        "runtime": artifact.runtime,
        "precision": artifact.precision,
        "device": _device(beside.conditions, on_gpu),
        "provider": measured.provider,
        "threads": measured.threads,
        "batch": measured.batch,
        "latency_ms": {**latency, "seconds": round(seconds, 3)},
        "stages_ms": {
            name: _median(measured, name) for name in ("preprocess", "copy_in", "infer", "copy_out", "postprocess")
        },
        "gpu_ms": _gpu(measured),
        "throughput_ips": round(1000 * measured.batch / latency["mean"], 3),
        "cold_start_ms": measured.cold_start_ms,
        "peak_memory_mb": measured.peak_mb,
        "artifact_mb": round(artifact.path.stat().st_size / 1e6, 3),
    }
    missing: dict[str, str | None] = {
        "threads": "a GPU runs it",
        "gpu_ms": "no GPU ran it",
        "stages_ms.copy_in": "nothing is copied to a device",
        "stages_ms.copy_out": "nothing is copied from a device",
        "peak_memory_mb": "this system does not tell a process's peak memory",
    }
    for name, (value, why) in {
        "device_memory_mb": _device_memory(measured, beside),
        **_energy(measured, beside, on_gpu),
        "power_mode": (beside.conditions.power_mode, beside.conditions.missing.get("power_mode", "")),
        "clocks": (beside.conditions.clocks, beside.conditions.missing.get("clocks", "")),
        "temperature_c": _temperature(measured, beside),
        "throttled": _throttled(measured, beside, on_gpu),
        "other_load": _other_load(measured, beside),
    }.items():
        row[name], missing[name] = value, why
    row["warnings"] = list(warnings(row, measured.warm_up.stable))
    row["missing"] = {name: missing[name] for name in _nulls(row)}
    return row


def warnings(row: Mapping[str, Any], stable: bool) -> Iterator[str]:
    """Why the figures of a row should not be quoted. stable: whether its warm-up was."""
    if row["clocks"] == "not locked":
        yield (
            "The clocks were not locked: lock them (on a Jetson `sudo jetson_clocks`, of a GPU `nvidia-smi "
            "--lock-gpu-clocks`) and measure again."
        )
    if row["throttled"]:
        yield "The machine throttled: heat, power or current held its clocks down."
    if (row["other_load"] or 0) > OTHER_LOAD_LIMIT:
        yield f"Other processes used more than {OTHER_LOAD_LIMIT:.0f}% of the machine's cores."
    p50, (low, high) = row["latency_ms"]["p50"], row["latency_ms"]["p50_interval"]
    if high - low > INTERVAL_LIMIT * p50:
        yield f"The 95% interval of the p50 is wider than {INTERVAL_LIMIT:.0%} of it: measure longer, or on a quieter machine."
    if not stable:
        yield "The warm-up was given up before the times were stable."


def _nulls(row: Mapping[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if value is None:
            yield name
        elif name == "stages_ms":
            yield from (f"{name}.{part}" for part, inner in value.items() if inner is None)


def _milliseconds(block: Block, part: str) -> Any:
    return np.array([getattr(run, part) for run in block.runs]) / 1e6


def _parts(measured: Measured, part: str) -> Any | None:
    """Milliseconds of all runs; None where it was not measured."""
    if getattr(measured.blocks[0].runs[0], part) is None:
        return None
    return np.concatenate([_milliseconds(block, part) for block in measured.blocks])


def _median(measured: Measured, part: str) -> float | None:
    times = _parts(measured, part)
    return None if times is None else round(percentile(times, 50), 4)


def _gpu(measured: Measured) -> dict[str, float] | None:
    times = _parts(measured, "gpu")
    return None if times is None else {f"p{q}": round(percentile(times, q), 4) for q in (50, 99)}


def _device(conditions: Conditions, on_gpu: bool) -> str:
    """A Jetson is one device; elsewhere it is the processor that ran it."""
    gpu = find_gpu() if on_gpu and conditions.jetpack is None else None
    return gpu.name if gpu else conditions.device


def _during(measured: Measured, samples: Sequence[Sample]) -> list[Sample]:
    """The samples that tell of the blocks and of nothing else."""
    return [s for s in samples if any(start < s.time_ns <= end for start, end in _windows(measured))]


def _windows(measured: Measured) -> list[tuple[int, int]]:
    """What a block's samples tell of, in its own part of the time."""
    found = ((block.start_ns + LAG_NS, block.end_ns) for block in measured.blocks)
    return [(start, end) for start, end in found if start < end]


def _energy(measured: Measured, beside: Beside, on_gpu: bool) -> dict[str, Known]:
    rail, why = pick_rail(beside.samples)
    if rail == GPU_BOARD and not on_gpu:
        rail, why = None, "the only power rail that is read is the GPU's, and the file ran on the CPU"
    if rail is None or beside.idle is None:
        unknown: Known = None, why or "the idle power was not measured"
        return dict.fromkeys(("energy_mj", "energy_rail", "power_idle_w"), unknown)
    idle_mw, why = idle_power(beside.samples, beside.idle, rail)
    if idle_mw is None:
        return {"energy_mj": (None, why), "energy_rail": (rail, ""), "power_idle_w": (None, why)}
    inside = [[s.time_ns for s in beside.samples if start < s.time_ns <= end] for start, end in _windows(measured)]
    windows = [
        (times[0], times[-1]) for times in inside if len(times) > 1
    ]  # from sample to sample: beyond is the neighbour's
    above, why = energy(beside.samples, windows, idle_mw, rail)
    spent = None
    if above is not None:
        # The power above idle is that of the windows; a call has its share of the blocks' whole time.
        power_mw = above / (sum(end - start for start, end in windows) / 1e9)
        seconds = sum(block.end_ns - block.start_ns for block in measured.blocks) / 1e9
        spent = round(power_mw * seconds / sum(len(block.runs) for block in measured.blocks), 4)
    return {"energy_mj": (spent, why), "energy_rail": (rail, ""), "power_idle_w": (round(idle_mw / 1000, 3), "")}


def _device_memory(measured: Measured, beside: Beside) -> Known:
    if beside.source != "tegrastats":
        return measured.device_mb, "no GPU ran it, or its session does not tell"
    used = [(s.time_ns, s.memory_used_mb) for s in beside.samples if s.memory_used_mb is not None]
    before = [mb for time, mb in used if time <= measured.opened_ns[0]]
    after = [mb for time, mb in used if measured.opened_ns[0] < time <= measured.opened_ns[1]]
    if not before or not after:
        return None, beside.missing.get("memory_used_mb", "no sample of the memory fell between opening and warm-up")
    return round(max(after) - before[-1], 1), ""


def _temperature(measured: Measured, beside: Beside) -> Known:
    hottest = [
        max(sample.temperature_c.values())
        for sample in beside.samples
        if sample.temperature_c and measured.opened_ns[0] <= sample.time_ns <= measured.blocks[-1].end_ns
    ]
    if not hottest:
        return None, beside.missing.get("temperature_c", "no sample of it fell into the measurement")
    return {"start": round(hottest[0], 1), "end": round(hottest[-1], 1)}, ""


def _throttled(measured: Measured, beside: Beside, on_gpu: bool) -> Known:
    if beside.source == "nvml" and not on_gpu:
        return None, "only the GPU's throttling is read, and the file ran on the CPU"
    told = [sample.throttled for sample in _during(measured, beside.samples) if sample.throttled is not None]
    if not told:
        return None, beside.missing.get("throttled", "no sample of it fell into the timed blocks")
    return any(told), ""


def _other_load(measured: Measured, beside: Beside) -> Known:
    """Percent of all cores, less what our own processes used."""
    loads = [sample.cpu_load for sample in _during(measured, beside.samples) if sample.cpu_load is not None]
    if not loads:
        return None, beside.missing.get("cpu_load", "no sample of the load fell into the timed blocks")
    nanoseconds = sum(block.end_ns - block.start_ns for block in measured.blocks)
    ours = 100 * sum(block.cpu_ns for block in measured.blocks) / (nanoseconds * (os.cpu_count() or 1))
    return round(max(0.0, math.fsum(loads) / len(loads) - ours), 1), ""
