"""Energies are worked out by hand: mW x s = mJ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from frs.edge.telemetry import Sample, energy, idle_power, pick_rail
from frs.edge.telemetry.power import GPU_BOARD

S = 1_000_000_000
START = 7_000 * S  # perf_counter counts from some moment


def samples(power: Callable[[float], float], seconds: float, step: float = 0.1, rail: str = "VDD_IN") -> list[Sample]:
    count = round(seconds / step) + 1
    return [Sample(START + round(i * step * S), power_mw={rail: power(i * step)}) for i in range(count)]


def window(start: float, end: float) -> tuple[int, int]:
    return START + round(start * S), START + round(end * S)


def joules(found: tuple[float | None, str | None]) -> float:
    value, why = found
    assert why is None
    assert value is not None
    return value


def ramp(t: float) -> float:
    return 1000 + 1000 * t


def step(t: float) -> float:
    return 2000 if t < 5.05 else 6000


def test_a_ramp_between_samples() -> None:
    """From 2.25 s to 5.75 s the ramp is 5000 mW in the mean: 3.5 s x 5000 mW, less 3.5 s x 1000 mW."""
    found = energy(samples(ramp, 10, step=0.5), [window(2.25, 5.75)], 1000, "VDD_IN")
    assert joules(found) == pytest.approx(14_000)


def test_a_step() -> None:
    """Between the samples at 5.0 s and 5.1 s the power is taken to be linear: 0.1 s x 2000 mW above idle, then 0.9 s x 4000."""
    read = samples(step, 10)
    assert joules(energy(read, [window(6, 9)], 2000, "VDD_IN")) == pytest.approx(12_000)
    assert joules(energy(read, [window(4, 6)], 2000, "VDD_IN")) == pytest.approx(3_800)


def test_windows_add_up_and_what_lies_between_does_not_count() -> None:
    read = samples(step, 10)
    both = joules(energy(read, [window(4, 6), window(6, 9)], 2000, "VDD_IN"))
    assert both == pytest.approx(15_800)
    apart = joules(energy(read, [window(1, 2), window(6, 9)], 1500, "VDD_IN"))
    assert apart == pytest.approx(1 * 500 + 3 * 4500)


def test_many_short_windows() -> None:
    """Shorter than the distance of samples: each border is interpolated."""
    windows = [window(1 + 0.06 * i, 1 + 0.06 * i + 0.05) for i in range(100)]
    assert joules(energy(samples(lambda t: 3000, 10), windows, 1000, "VDD_IN")) == pytest.approx(100 * 0.05 * 2000)


def test_a_window_that_ends_just_after_the_last_sample() -> None:
    assert joules(energy(samples(lambda t: 3000, 2), [window(1, 2.05)], 1000, "VDD_IN")) == pytest.approx(2100)


def test_samples_that_lack_the_rail_are_passed_over() -> None:
    read = samples(ramp, 10)
    read[50] = Sample(read[50].time_ns)  # a damaged line
    assert joules(energy(read, [window(2, 8)], 1000, "VDD_IN")) == pytest.approx(6 * 5000)


def test_a_sum_of_rails() -> None:
    rail = "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0"
    read = [
        Sample(START + i * S // 10, power_mw={"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500, "OTHER": 9})
        for i in range(31)
    ]
    assert pick_rail(read) == (rail, None)
    assert idle_power(read, window(0, 3)) == (13_907, None)
    assert joules(energy(read, [window(1, 2)], 3907, rail)) == pytest.approx(10_000)


@pytest.mark.parametrize(
    ("windows", "idle", "why"),
    [
        ([], 0, "0 samples of VDD_IN in the timed blocks"),
        ([(1.01, 1.39)], 0, "3 samples of VDD_IN in the timed blocks, at least 5 are needed"),
        ([(1, 2), (10.6, 11)], 0, "no sample of VDD_IN for more than 0.5 s in a timed block"),
        ([(-1, 2)], 0, "no sample of VDD_IN for more than 0.5 s in a timed block"),
        ([(1, 4)], 3000, "VDD_IN drew no more in the timed blocks than while idle"),
    ],
)
def test_what_cannot_be_told(windows: Sequence[tuple[float, float]], idle: float, why: str) -> None:
    value, reason = energy(samples(lambda t: 3000, 10), [window(*w) for w in windows], idle, "VDD_IN")
    assert value is None
    assert reason is not None
    assert reason.startswith(why)


@pytest.mark.parametrize("border", [2.5, 3.5])
def test_a_gap_is_not_filled(border: float) -> None:
    """Between 2 s and 4 s tegrastats hung: a window that touches the gap is not told, one that does not is."""
    read = [s for s in samples(ramp, 10) if not START + 2.01 * S < s.time_ns < START + 3.99 * S]
    value, why = energy(read, [window(1, border)] if border < 3 else [window(border, 6)], 0, "VDD_IN")
    assert (value, why) == (None, "no sample of VDD_IN for more than 0.5 s in a timed block")
    assert joules(energy(read, [window(0, 2), window(4, 6)], 0, "VDD_IN")) == pytest.approx(2 * 2000 + 2 * 6000)


def test_idle_is_the_mean_of_the_window() -> None:
    read = samples(ramp, 10)
    assert idle_power(read, window(1, 3), "VDD_IN") == (pytest.approx(3000), None)
    assert idle_power(read, window(1, 1.3)) == (None, "4 samples of VDD_IN while idle, at least 5 are needed")
    assert idle_power([Sample(0)], (0, 1)) == (None, "no power rail is read on this machine")


@pytest.mark.parametrize(
    ("rails", "rail", "why"),
    [
        (["VDD_SOC", "VDD_IN", "VDD_CPU_GPU_CV"], "VDD_IN", None),
        (["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0", "VIN"], "VIN", None),
        (["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"], "VDD_GPU_SOC+VDD_CPU_CV+VIN_SYS_5V0", None),
        ([GPU_BOARD], GPU_BOARD, None),
        (["VDD_SOC", "VDD_GPU"], None, "none of the rails VDD_GPU, VDD_SOC is known to measure the whole module"),
        ([], None, "no power rail is read on this machine"),
    ],
)
def test_the_rail_of_the_whole_module(rails: list[str], rail: str | None, why: str | None) -> None:
    assert pick_rail([Sample(0), Sample(1, power_mw=dict.fromkeys(rails, 1.0))]) == (rail, why)
