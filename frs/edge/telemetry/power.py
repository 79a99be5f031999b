"""From samples of power to energy.

What the clock can and cannot say. A sample bears the time at which it arrived. `tegrastats` reads its sensors one after the
other and then prints, and the INA3221 behind a rail averages over its own conversions, so that a reading tells of up to one
interval (100 ms) before its time stamp. Power is thus seen late, by L of at most about 0.1 s, and between samples it is taken
to be linear. A block of length T has at its two borders a part of about L / T that belongs to its neighbour: 10% for a block
of 1 s, 3% for one of 3 s. Blocks of different artifacts that alternate are pulled towards one another by that much, never
apart. Leave the runs that warm a block up outside its window, and let windows be seconds long. (A GPU whose driver has no
momentary power, but only the mean of the last second, is seen up to 1 s late.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frs.edge.telemetry.sample import Sample

GPU_BOARD = "GPU board (NVML)"
MINIMUM_SAMPLES = 5

# What measures a whole module, best first. Orin Nano and NX: VDD_IN, the module's total (forums.developer.nvidia.com/t/200883).
# AGX Orin has no such rail: the three channels of its first power sensor (tegra234-p3701.dtsi in Linux) are taken to be the
# module's supplies, and VDDQ_VDD2_1V8AO, on the second, to be fed by the 5 V one, so that it would count twice; no meter has
# confirmed it. Thor: VIN is what goes into module and carrier board (forums.developer.nvidia.com/t/366461).
_WHOLE = ("VDD_IN", "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", "VIN", GPU_BOARD)
_GAP = 5  # times the usual distance of samples: beyond it, what the power was in between is not known


def pick_rail(samples: Sequence[Sample]) -> tuple[str | None, str | None]:
    """The rail, or the sum of rails ("A+B"), that measures the whole module or GPU board; or None and the reason."""
    for rail in _WHOLE:
        if any(_power(sample, rail) is not None for sample in samples):
            return rail, None
    seen = sorted({name for sample in samples for name in sample.power_mw})
    if not seen:
        return None, "no power rail is read on this machine"
    return None, f"none of the rails {', '.join(seen)} is known to measure the whole module"


def idle_power(
    samples: Sequence[Sample], window: tuple[int, int], rail: str | None = None
) -> tuple[float | None, str | None]:
    """Mean power in mW within (start_ns, end_ns), or None and the reason. rail: None for the one that `pick_rail` picks."""
    if rail is None:
        rail, why = pick_rail(samples)
        if rail is None:
            return None, why
    start, end = window
    inside = [p for s in samples if start <= s.time_ns <= end and (p := _power(s, rail)) is not None]
    if len(inside) < MINIMUM_SAMPLES:
        return None, f"{len(inside)} samples of {rail} while idle, at least {MINIMUM_SAMPLES} are needed"
    return float(np.mean(inside)), None


def energy(
    samples: Sequence[Sample], windows: Sequence[tuple[int, int]], idle_mw: float, rail: str
) -> tuple[float | None, str | None]:
    """Energy above idle in mJ, all windows (start_ns, end_ns) together; or None and the reason.

    Trapezoids over the samples within a window and the power at its borders, interpolated between the samples around them.
    rail: as `pick_rail` names it; samples that lack a part of it are passed over.
    """
    points = [(s.time_ns, p) for s in samples if (p := _power(s, rail)) is not None]
    inside = sum(any(start <= time <= end for start, end in windows) for time, _ in points)
    if inside < MINIMUM_SAMPLES:
        return None, f"{inside} samples of {rail} in the timed blocks, at least {MINIMUM_SAMPLES} are needed"
    origin = points[0][0]
    times = np.array([time - origin for time, _ in points], dtype=np.float64)
    power = np.array([value for _, value in points], dtype=np.float64)
    longest = _GAP * float(np.median(np.diff(times)))
    total = 0.0
    for start, end in ((start - origin, end - origin) for start, end in windows):
        first, last = np.searchsorted(times, start, "right"), np.searchsorted(times, end, "left")
        gaps = np.diff(times[max(first - 1, 0) : last + 1])  # those that touch the window
        if max(gaps.max(initial=0), times[0] - start, end - times[-1]) > longest:
            return None, f"no sample of {rail} for more than {longest / 1e9:.1f} s in a timed block"
        grid = np.concatenate([[start], times[first:last], [end]])
        above = np.interp(grid, times, power) - idle_mw
        total += float(((above[1:] + above[:-1]) / 2 * np.diff(grid)).sum()) / 1e9  # mW x ns
    if total <= 0:
        return None, f"{rail} drew no more in the timed blocks than while idle"
    return total, None


def _power(sample: Sample, rail: str) -> float | None:
    parts = [sample.power_mw.get(name) for name in rail.split("+")]
    return None if None in parts else sum(part for part in parts if part is not None)
