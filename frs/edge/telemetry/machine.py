"""What psutil tells of any machine: load, memory, temperatures, the CPU's clock."""

from __future__ import annotations

import importlib
from typing import Any

from frs.edge.telemetry.sample import Sample
from frs.edge.telemetry.throttling import NOT_REPORTED, JetsonThrottling

_POWER = "no power rail is read on this machine"
_THROTTLING = "throttling is read on a Jetson and, of a GPU, through NVML"


class MachineSource:
    """psutil where it is installed; without it every field of its own is missing.

    without_gpu: why nothing is read of a GPU. throttling: of a Jetson whose tegrastats cannot be run.
    """

    name = "psutil"

    def __init__(self, *, without_gpu: str, throttling: JetsonThrottling | None = None) -> None:
        self._throttling = throttling
        self._psutil: Any = None
        self.missing = {
            "power_mw": f"{_POWER}: {without_gpu}",
            "gpu_load": without_gpu,
            "throttled": _THROTTLING if throttling is None else NOT_REPORTED,
        }
        try:
            self._psutil = importlib.import_module("psutil")
        except ImportError:
            absent = dict.fromkeys(
                ("temperature_c", "cpu_load", "memory_used_mb", "clocks_mhz"), "psutil is not installed"
            )
            self.missing.update(absent)

    def read(self, time_ns: int) -> Sample:
        throttled = None if self._throttling is None else self._throttling.read()
        if self._psutil is None:
            return Sample(time_ns, throttled=throttled)
        memory = self._psutil.virtual_memory()
        return Sample(
            time_ns,
            temperature_c=self._temperatures(),
            cpu_load=float(self._psutil.cpu_percent()),
            memory_used_mb=(memory.total - memory.available) / 1e6,
            clocks_mhz=self._clocks(),
            throttled=throttled,
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _temperatures(self) -> dict[str, float]:
        self.missing.setdefault("temperature_c", "this system reports no temperatures")
        read_sensors = getattr(self._psutil, "sensors_temperatures", None)  # not on macOS and Windows
        sensors = {} if read_sensors is None else read_sensors()
        return {
            f"{chip}/{sensor.label}" if sensor.label else chip: float(sensor.current)
            for chip, found in sensors.items()
            for sensor in found
            if sensor.current is not None
        }

    def _clocks(self) -> dict[str, float]:
        self.missing.setdefault("clocks_mhz", "this system does not report the clock of its CPU")
        found = self._psutil.cpu_freq()
        return {"cpu": float(found.current)} if found else {}
