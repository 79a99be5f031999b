"""Whether a Jetson holds its clocks down.

Two things are read, both described in NVIDIA's Jetson Linux Developer Guide, "Platform Power and Performance" of the Orin
series, and neither needs root:

- the cooling devices of the Linux thermal framework (Documentation/ABI/testing/sysfs-class-thermal): those that lower the
  clock of the CPU or the GPU (`cpufreq-cpu0`, `devfreq-17000000.gpu`), and the `*-throttle-alert` ones, have a state above 0
  while their zone is above its trip point;
- the counters of over-current and under-voltage events (hwmon `soctherm_oc`, `oc1` to `oc3`), on each of which the hardware
  throttles where `oc<n>_throt_en` is 1.

Trip points are not compared with temperatures: Orin has a passive trip at 70 C, bound to `hot-surface-alert` alone, which
slows nothing. A fan is a cooling device too, and no throttling.
"""

from __future__ import annotations

from pathlib import Path

from frs.edge.telemetry.sysfs import read, read_int

NOT_REPORTED = "no cooling device that slows a clock and no over-current counter can be read in /sys"

_SLOWING = ("cpufreq", "devfreq", "thermal-cpufreq", "thermal-devfreq")


class JetsonThrottling:
    """Asked again and again; what was counted before it was made does not count."""

    def __init__(self, root: Path = Path("/")) -> None:
        thermal, hwmon = root / "sys/class/thermal", root / "sys/class/hwmon"
        self._devices = [d for d in sorted(thermal.glob("cooling_device*")) if _slows(read(d / "type") or "")]
        self._counters = [
            counter
            for sensor in sorted(hwmon.glob("hwmon*"))
            if read(sensor / "name") == "soctherm_oc"
            for counter in sorted(sensor.glob("oc*_event_cnt"))
            if read_int(sensor / counter.name.replace("event_cnt", "throt_en")) != 0
        ]
        self._events = self._count()

    def read(self) -> bool | None:
        """Whether clocks are held down now, or were for a moment since the last call; None where nothing says so."""
        states = [state for d in self._devices if (state := read_int(d / "cur_state")) is not None]
        before, self._events = self._events, self._count()
        if not states and not self._events:
            return None
        return any(state > 0 for state in states) or any(
            count > before.get(path, count) for path, count in self._events.items()
        )

    def _count(self) -> dict[Path, int]:
        return {path: count for path in self._counters if (count := read_int(path)) is not None}


def _slows(kind: str) -> bool:
    return kind.startswith(_SLOWING) or kind.endswith("throttle-alert")
