"""One reading of a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Sample:
    """What was read at one moment; None, or no entry, where it was not read.

    time_ns: `time.perf_counter_ns` when the reading arrived. power_mw: rail -> milliwatts. temperature_c: sensor -> degrees
    Celsius. cpu_load, gpu_load: percent, 0 to 100, of all cores that are on and of the GPU. memory_used_mb: 10^6 bytes, of a
    Jetson's one memory, of the GPU (NVML), or else of the machine. clocks_mhz: "cpu", "gpu", "emc" -> MHz; of several cores
    or clusters, the fastest. throttled: whether heat, power or current held clocks down.
    """

    time_ns: int
    power_mw: Mapping[str, float] = field(default_factory=dict)
    temperature_c: Mapping[str, float] = field(default_factory=dict)
    cpu_load: float | None = None
    gpu_load: float | None = None
    memory_used_mb: float | None = None
    clocks_mhz: Mapping[str, float] = field(default_factory=dict)
    throttled: bool | None = None


FIELDS = tuple(f.name for f in fields(Sample) if f.name != "time_ns")


def without(samples: list[Sample], name: str) -> bool:
    """Whether no sample has this field."""
    return all(getattr(sample, name) in (None, {}) for sample in samples)
