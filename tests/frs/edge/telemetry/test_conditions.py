from __future__ import annotations

from pathlib import Path

import pytest

from frs.edge.machine import Gpu, cpu_model
from frs.edge.telemetry import conditions, state

RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
STATUS = """Package: libc6
Version: 2.35

Package: nvidia-l4t-core
Status: install ok installed
Maintainer: NVIDIA Corporation
Version: 38.2.0-20250821174705
Description: NVIDIA Core Package

Package: zlib1g
Version: 1.2.11
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU and no nvpmodel, whatever this machine has."""
    monkeypatch.setattr(state, "find_gpu", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    write(root / "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0")
    write(root / "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234\0")
    write(root / "etc/nv_tegra_release", RELEASE)
    for policy in ("policy0", "policy4"):
        limits(root / f"sys/devices/system/cpu/cpufreq/{policy}/scaling", 1510400, 1510400)
    limits(root / "sys/class/devfreq/17000000.gpu/", 1020000000, 1020000000)
    limits(root / "sys/class/devfreq/15340000.vic/", 115200000, 435200000)
    return root


def limits(prefix: Path | str, low: int, high: int) -> None:
    folder, name = (Path(prefix).parent, "scaling_") if str(prefix).endswith("scaling") else (Path(prefix), "")
    write(folder / f"{name}min_freq", f"{low}\n")
    write(folder / f"{name}max_freq", f"{high}\n")


def nvpmodel(folder: Path, body: str) -> None:
    write(folder / "bin/nvpmodel", f'#!/bin/sh\n[ "$*" = -q ] || exit 9\n{body}\n')
    (folder / "bin/nvpmodel").chmod(0o755)


def test_a_jetson(orin: Path, tmp_path: Path) -> None:
    nvpmodel(tmp_path, "echo 'NV Power Mode: MAXN_SUPER'; echo 0")
    found = conditions(orin)
    assert found.device == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found.jetpack == "JetPack 6.2 (L4T 36.4.3)"
    assert found.power_mode == "MAXN_SUPER"
    assert found.clocks == "locked"
    assert found.missing == {}


@pytest.mark.parametrize(
    ("release", "jetpack"),
    [
        (RELEASE.replace("4.3", "4.0"), "JetPack 6.1 (L4T 36.4)"),
        (RELEASE.replace("R36", "R38").replace("4.3", "2.1"), "JetPack 7.0 (L4T 38.2.1)"),
        (RELEASE.replace("R36", "R38").replace("4.3", "4.0"), "JetPack 7.1 (L4T 38.4)"),
        (RELEASE.replace("4.3", "9.9"), "L4T 36.9.9"),  # a release that the table does not know
    ],
)
def test_jetpack_of_a_release(orin: Path, release: str, jetpack: str) -> None:
    write(orin / "etc/nv_tegra_release", release)
    assert conditions(orin).jetpack == jetpack


def test_jetpack_of_the_package_alone(orin: Path) -> None:
    (orin / "etc/nv_tegra_release").unlink()
    write(orin / "var/lib/dpkg/status", STATUS)
    assert conditions(orin).jetpack == "JetPack 7.0 (L4T 38.2)"
    write(orin / "var/lib/dpkg/status", STATUS.replace("nvidia-l4t-core", "nvidia-l4t-tools"))
    found = conditions(orin)
    assert found.jetpack is None
    assert "nvidia-l4t-core" in found.missing["jetpack"]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (
            "echo 'NVPM ERROR: failed to read PARAM' >&2; exit 3",
            "names no mode (status 3): NVPM ERROR: failed to read PARAM",
        ),
        ("kill -9 $$", "names no mode (status -9)"),
    ],
)
def test_a_power_mode_that_cannot_be_asked(orin: Path, tmp_path: Path, body: str, why: str) -> None:
    nvpmodel(tmp_path, body)
    found = conditions(orin)
    assert found.power_mode is None
    assert why in found.missing["power_mode"]


def test_an_nvpmodel_that_hangs(orin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_NVPMODEL_S", 0.2)
    nvpmodel(tmp_path, "exec /bin/sleep 3600")
    assert "timed out" in conditions(orin).missing["power_mode"]


@pytest.mark.parametrize("gpu", ["17000000.gpu", "17000000.ga10b", "gpu-gpc-0"])
def test_a_clock_that_may_move(orin: Path, gpu: str) -> None:
    folder = orin / "sys/class/devfreq"
    (folder / "17000000.gpu").rename(folder / gpu)
    assert conditions(orin).clocks == "locked"
    limits(folder / gpu, 306000000, 1020000000)
    assert conditions(orin).clocks == "not locked"
    limits(folder / gpu, 1020000000, 1020000000)
    limits(orin / "sys/devices/system/cpu/cpufreq/policy4/scaling", 729600, 1510400)
    assert conditions(orin).clocks == "not locked"


def test_a_clock_that_is_not_known(orin: Path) -> None:
    (orin / "sys/class/devfreq/17000000.gpu/max_freq").unlink()
    found = conditions(orin)
    assert found.clocks is None
    assert found.missing["clocks"] == "the limits of the GPU's clock are not in /sys"
    limits(orin / "sys/devices/system/cpu/cpufreq/policy4/scaling", 729600, 1510400)
    assert conditions(orin).clocks == "not locked"  # one is enough


def test_a_machine_that_is_no_jetson(tmp_path: Path) -> None:
    found = conditions(tmp_path)
    assert found.device == cpu_model()
    assert (found.jetpack, found.power_mode, found.clocks) == (None, None, None)
    assert found.missing["jetpack"] == "not a Jetson"
    assert set(found.missing) == {"jetpack", "power_mode", "clocks"}
    limits(tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling", 3000000, 3000000)
    assert conditions(tmp_path).clocks == "locked"


def test_a_workstation_with_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "find_gpu", lambda: Gpu("NVIDIA L4", "sm_89", "580.65"))
    limits(tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling", 3000000, 3000000)
    found = conditions(tmp_path)
    assert found.clocks is None
    assert "NVML" in found.missing["clocks"]
    limits(tmp_path / "sys/devices/system/cpu/cpufreq/policy0/scaling", 800000, 3000000)
    assert conditions(tmp_path).clocks == "not locked"


def test_this_machine_is_read_without_an_error() -> None:
    found = conditions()
    assert found.device
    for name in ("jetpack", "power_mode", "clocks"):
        assert (getattr(found, name) is None) == (name in found.missing)
