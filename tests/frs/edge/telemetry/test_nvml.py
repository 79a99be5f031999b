"""nvidia-ml-py itself, with a stand-in for the driver's library that it calls."""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from frs.edge.telemetry import nvml, pick_rail, sampler
from frs.edge.telemetry.nvml import NvmlSource, first_gpu_address, open_gpu
from frs.edge.telemetry.power import GPU_BOARD
from frs.edge.telemetry.sample import Sample

NOT_SUPPORTED, FUNCTION_NOT_FOUND, DRIVER_NOT_LOADED = 3, 13, 9
IDLE, APPLICATION_CLOCKS, POWER_CAP, HW_SLOWDOWN, SYNC_BOOST, SW_HOT, HW_HOT, BRAKE, DISPLAY = (
    1 << i for i in range(9)
)


class Library:
    """libnvidia-ml.so.1 of one GPU. failing: function -> the status that it returns. absent: those that it lacks."""

    def __init__(
        self, failing: dict[str, int] | None = None, absent: tuple[str, ...] = (), reasons: int = IDLE
    ) -> None:
        self.failing, self.absent = failing or {}, absent
        self.calls: list[str] = []
        self.address = b""
        self.values = {
            "nvmlDeviceGetPowerUsage": 61_000,
            "nvmlDeviceGetTemperature": 54,
            "nvmlDeviceGetClockInfo": 1410,
            "nvmlDeviceGetCurrentClocksEventReasons": reasons,
            "nvmlDeviceGetCurrentClocksThrottleReasons": reasons,
        }

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name in self.absent or not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            if name == "nvmlDeviceGetHandleByPciBusId_v2":
                self.address = arguments[0].value
            elif name == "nvmlDeviceGetClockInfo":
                assert arguments[1].value == pynvml.NVML_CLOCK_SM
            elif name == "nvmlDeviceGetTemperature":
                assert arguments[1].value == pynvml.NVML_TEMPERATURE_GPU
            if name in self.values:
                arguments[-1]._obj.value = self.values[name]
            elif name == "nvmlDeviceGetUtilizationRates":
                arguments[-1]._obj.gpu = 87
            elif name == "nvmlDeviceGetMemoryInfo":
                arguments[-1]._obj.used = 2_345_678_901
            elif name == "nvmlDeviceGetFieldValues":
                field = arguments[-1]._obj[0]
                assert field.fieldId == pynvml.NVML_FI_DEV_POWER_INSTANT
                field.nvmlReturn, field.value.uiVal = self.failing.get("instant", 0), 72_500
            return 0

        return call


class Cuda:
    """libcuda.so.1 with one device, or with a call that fails."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 100
            if name == "cuDeviceGetPCIBusId":
                arguments[0].value = b"0000:41:00.0"
            return 0

        return call


Install = Callable[..., Library]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def use(library: Library, cuda: Cuda | None = None) -> Library:
        monkeypatch.setattr(pynvml, "nvmlLib", library)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        monkeypatch.setattr(ctypes, "CDLL", lambda name: cuda or Cuda())
        return library

    return use


def read() -> tuple[Sample, NvmlSource]:
    gpu, why = open_gpu()
    assert gpu is not None, why
    return gpu.read(7), gpu


def test_a_gpu(install: Install) -> None:
    library = install(Library())
    sample, gpu = read()
    assert library.address == b"0000:41:00.0"  # CUDA's first, not NVML's
    assert sample.time_ns == 7
    assert sample.power_mw == {GPU_BOARD: 72_500}
    assert sample.temperature_c["gpu"] == 54
    assert sample.gpu_load == 87
    assert sample.memory_used_mb == 2345.678901
    assert sample.clocks_mhz["gpu"] == 1410
    assert sample.throttled is False
    assert sample.cpu_load is not None  # psutil's
    assert pick_rail([sample]) == (GPU_BOARD, None)
    gpu.close()
    assert library.calls[-1] == "nvmlShutdown"


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [
        (0, False),
        (IDLE, False),
        (APPLICATION_CLOCKS | DISPLAY | SYNC_BOOST, False),
        (POWER_CAP, True),
        (HW_SLOWDOWN, True),
        (SW_HOT, True),
        (HW_HOT | IDLE, True),
        (BRAKE, True),
    ],
)
def test_reasons_for_lower_clocks(install: Install, reasons: int, throttled: bool) -> None:
    install(Library(reasons=reasons))
    assert read()[0].throttled is throttled


def test_the_bits_are_nvidias() -> None:
    names = ("SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert sum(getattr(pynvml, f"nvmlClocksEventReason{name}") for name in names) == nvml.THROTTLING


@pytest.mark.parametrize("failing", [{"instant": NOT_SUPPORTED}, {"nvmlDeviceGetFieldValues": NOT_SUPPORTED}])
def test_an_older_gpu_has_one_power_only(install: Install, failing: dict[str, int]) -> None:
    install(Library(failing))
    assert read()[0].power_mw == {GPU_BOARD: 61_000}


def test_an_older_driver_knows_throttle_reasons(install: Install) -> None:
    install(Library(absent=("nvmlDeviceGetCurrentClocksEventReasons",), reasons=HW_HOT))
    assert read()[0].throttled is True


def test_what_a_gpu_does_not_support_is_missing_with_the_reason(install: Install, tmp_path: Path) -> None:
    names = [
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ]
    install(Library(dict.fromkeys(names, NOT_SUPPORTED)))
    sample, gpu = read()
    assert (sample.power_mw, sample.gpu_load, sample.memory_used_mb, sample.throttled) == ({}, None, None, None)
    assert "gpu" not in {**sample.temperature_c, **sample.clocks_mhz}
    assert gpu.missing["power_mw"] == "nvmlDeviceGetPowerUsage: Not Supported"
    assert {"power_mw", "temperature_c", "gpu_load", "memory_used_mb", "clocks_mhz", "throttled"} <= set(gpu.missing)
    with sampler(0.01, tmp_path) as telemetry:
        while not telemetry.samples():
            time.sleep(0.01)
    assert telemetry.source == "nvml"
    assert {"power_mw", "gpu_load", "memory_used_mb", "throttled"} <= set(telemetry.missing)
    assert telemetry.missing["gpu_load"] == "nvmlDeviceGetUtilizationRates: Not Supported"


def test_no_driver(install: Install, tmp_path: Path) -> None:
    install(Library({"nvmlInitWithFlags": DRIVER_NOT_LOADED}))
    assert open_gpu() == (None, "no NVIDIA GPU is seen here (NVML: Driver Not Loaded)")
    telemetry = sampler(0.01, tmp_path)
    assert telemetry.source == "psutil"
    assert telemetry.missing["gpu_load"] == "no NVIDIA GPU is seen here (NVML: Driver Not Loaded)"


@pytest.mark.parametrize("failing", ["cuInit", "cuDeviceGet", "cuDeviceGetPCIBusId"])
def test_a_gpu_that_cuda_does_not_use_is_not_read(install: Install, failing: str) -> None:
    library = install(Library(), Cuda(failing))
    assert open_gpu() == (None, "CUDA sees no GPU here")
    assert library.calls[-1] == "nvmlShutdown"


def test_a_gpu_that_is_lost(install: Install) -> None:
    install(Library({"nvmlDeviceGetHandleByPciBusId_v2": 15}))
    assert open_gpu() == (None, "NVML does not open the GPU: GPU is lost")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def refuse(name: str, package: str | None = None) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert open_gpu() == (None, "nvidia-ml-py, which reads NVIDIA GPUs, is not installed")


def test_the_address_is_cudas() -> None:
    assert first_gpu_address(Cuda()) == "0000:41:00.0"
    assert first_gpu_address(Cuda("cuInit")) is None
