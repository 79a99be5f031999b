from __future__ import annotations

from pathlib import Path

import pytest

from frs.edge.telemetry.throttling import JetsonThrottling


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An Orin Nano that is cool: its cooling devices and its over-current counters."""
    kinds = ["cpufreq-cpu0", "devfreq-17000000.gpu", "gpu-throttle-alert", "hot-surface-alert", "pwm-fan"]
    for i, kind in enumerate(kinds):
        write(tmp_path / f"sys/class/thermal/cooling_device{i}/type", kind)
        write(tmp_path / f"sys/class/thermal/cooling_device{i}/cur_state", "0")
    hwmon = tmp_path / "sys/class/hwmon"
    write(hwmon / "hwmon0/name", "ina3221")
    write(hwmon / "hwmon3/name", "soctherm_oc")
    for i, (count, enabled) in enumerate([(0, 1), (15, 0), (37, 1)], 1):
        write(hwmon / f"hwmon3/oc{i}_event_cnt", str(count))
        write(hwmon / f"hwmon3/oc{i}_throt_en", str(enabled))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.mark.parametrize(("device", "throttled"), [(0, True), (1, True), (2, True), (3, False), (4, False)])
def test_cooling_that_slows_a_clock(root: Path, device: int, throttled: bool) -> None:
    watched = JetsonThrottling(root)
    assert watched.read() is False
    state = root / f"sys/class/thermal/cooling_device{device}/cur_state"
    write(state, "1")
    assert watched.read() is throttled
    write(state, "0")
    assert watched.read() is False


def test_over_current_events_count_once_and_only_from_now_on(root: Path) -> None:
    watched = JetsonThrottling(root)
    assert watched.read() is False  # 37 came before
    write(root / "sys/class/hwmon/hwmon3/oc3_event_cnt", "39")
    assert watched.read() is True
    assert watched.read() is False


def test_an_event_that_does_not_throttle(root: Path) -> None:
    watched = JetsonThrottling(root)
    write(root / "sys/class/hwmon/hwmon3/oc2_event_cnt", "16")
    assert watched.read() is False


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert JetsonThrottling(tmp_path).read() is None


def test_files_that_vanish_or_lie(root: Path) -> None:
    watched = JetsonThrottling(root)
    write(root / "sys/class/thermal/cooling_device0/cur_state", "unknown")
    (root / "sys/class/thermal/cooling_device1/cur_state").unlink()
    (root / "sys/class/hwmon/hwmon3/oc1_event_cnt").unlink()
    assert watched.read() is False
    for path in [*root.glob("sys/class/thermal/*/cur_state"), *root.glob("sys/class/hwmon/*/oc*_event_cnt")]:
        path.unlink()
    assert watched.read() is None
