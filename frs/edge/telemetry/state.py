"""What a measurement was taken under."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from frs.edge.machine import cpu_model, find_gpu
from frs.edge.telemetry.sysfs import is_jetson, read, read_int

LOCKED, NOT_LOCKED = "locked", "not locked"
_NVPMODEL_S = 5

# NVIDIA's Jetson documentation archive (docs.nvidia.com/jetson/archives); other releases are given by their number alone.
_JETPACK = {
    "36.3": "6.0",
    "36.4": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "38.2": "7.0",
    "38.2.1": "7.0",
    "38.4": "7.1",
}
_RELEASE = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")
_PACKAGE = re.compile(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: ([\d.]+)", re.MULTILINE)
_GPU = re.compile(r"\.gpu$|\.g[av]\d+b$|^gpu-gpc")  # Orin since JetPack 6, Orin before, Thor
_MODE = re.compile(r"NV Power Mode:\s*(\S+)")


@dataclass(frozen=True)
class Conditions:
    """device: the board, or the CPU. jetpack: "JetPack 6.2 (L4T 36.4.3)", or the L4T release alone. power_mode: nvpmodel's, as
    "MAXN". clocks: "locked" where each clock's lowest and highest limit are the same, "not locked" where one's are not. None
    where it cannot be known: missing[field] says why.
    """

    device: str
    jetpack: str | None
    power_mode: str | None
    clocks: str | None
    missing: Mapping[str, str]


def conditions(root: Path = Path("/")) -> Conditions:
    """Those of this machine, now. root: where /sys, /proc, /etc and /var are found. Needs no root's rights, never raises."""
    jetson = is_jetson(root)
    model = read(root / "proc/device-tree/model") if jetson else None
    found = {
        "jetpack": _jetpack(root) if jetson else (None, "not a Jetson"),
        "power_mode": _power_mode(),
        "clocks": _clocks(root, jetson),
    }
    return Conditions(
        device=model or cpu_model(),
        jetpack=found["jetpack"][0],
        power_mode=found["power_mode"][0],
        clocks=found["clocks"][0],
        missing={name: why for name, (value, why) in found.items() if value is None},
    )


def _jetpack(root: Path) -> tuple[str | None, str]:
    if match := _RELEASE.search(read(root / "etc/nv_tegra_release") or ""):
        release = f"{match[1]}.{match[2]}"
    elif match := _PACKAGE.search(read(root / "var/lib/dpkg/status") or ""):
        release = match[1]
    else:
        return (
            None,
            "neither /etc/nv_tegra_release nor the package nvidia-l4t-core is here (not seen from inside a container?)",
        )
    release = release.removesuffix(".0")
    jetpack = _JETPACK.get(release)
    return (f"JetPack {jetpack} (L4T {release})" if jetpack else f"L4T {release}"), ""


def _power_mode() -> tuple[str | None, str]:
    program = shutil.which("nvpmodel")
    if program is None:
        return None, "nvpmodel is not on PATH: this machine has no named power modes, or this is a container"
    try:
        result = subprocess.run([program, "-q"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_NVPMODEL_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"nvpmodel -q failed: {error}"
    said = (result.stdout + result.stderr).decode(errors="replace")
    if match := _MODE.search(said):
        return match[1], ""
    return None, f"nvpmodel -q names no mode (status {result.returncode}): {' '.join(said.split())[:200]}"


def _clocks(root: Path, jetson: bool) -> tuple[str | None, str]:
    """Of the CPU and of the GPU: one that is not locked decides, one that is not known leaves it open."""
    verdicts = [
        _limits(
            "CPU", (root / "sys/devices/system/cpu/cpufreq").glob("policy*"), "scaling_min_freq", "scaling_max_freq"
        )
    ]
    if jetson:
        gpu = [d for d in (root / "sys/class/devfreq").glob("*") if _GPU.search(d.name)]
        verdicts.append(_limits("GPU", gpu, "min_freq", "max_freq"))
    elif find_gpu() is not None:
        verdicts.append((None, "NVML does not tell whether the GPU's clocks are locked"))
    for verdict in (NOT_LOCKED, None):
        for found in verdicts:
            if found[0] == verdict:
                return found
    return LOCKED, ""


def _limits(what: str, folders: Iterable[Path], low: str, high: str) -> tuple[str | None, str]:
    limits = [(read_int(folder / low), read_int(folder / high)) for folder in folders]
    if not limits or any(None in pair for pair in limits):
        return None, f"the limits of the {what}'s clock are not in /sys"
    return (LOCKED if all(lowest == highest for lowest, highest in limits) else NOT_LOCKED), ""
