"""What a measurement was taken on: processor, memory, system, GPU. No host name, no user, no paths."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """The first GPU that this process may use; sm: compute capability, as in "sm_87"; driver: None where it is unknown."""

    name: str
    sm: str
    driver: str | None


def describe_machine() -> dict[str, Any]:
    """cpu (model), cores (those that this process may use), memory_gb, system, architecture, python, gpu."""
    gpu = find_gpu()
    return {
        "cpu": cpu_model(),
        "cores": available_cores(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "gpu": gpu and {"name": gpu.name, "sm": gpu.sm, "driver": gpu.driver},
    }


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """The installed ones of these distributions with their versions, without importing them."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_model() -> str:
    """As the kernel names it; on ARM boards without a model name, the board's."""
    for source, key in ((Path("/proc/cpuinfo"), "model name"), (Path("/proc/device-tree/model"), None)):
        if not source.exists():
            continue
        text = source.read_text(encoding="utf-8", errors="replace")
        if key is None:
            return text.strip("\0\n ")
        for line in text.splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)


def find_gpu(driver: Any = None) -> Gpu | None:
    """Asked of NVIDIA's driver library, which a desktop and a Jetson both have; None where it or a GPU is missing."""
    try:
        cuda = driver or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count, device, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return None
    if (
        cuda.cuDeviceGet(ctypes.byref(device), 0)
        or cuda.cuDeviceGetName(name, len(name), device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
        or cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
    ):
        return None
    version = Path("/sys/module/nvidia/version")
    return Gpu(
        name.value.decode(errors="replace"),
        f"sm_{major.value}{minor.value}",
        version.read_text().strip() if version.exists() else None,
    )
