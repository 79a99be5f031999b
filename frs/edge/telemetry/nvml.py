"""An NVIDIA GPU of a workstation or a server, through NVML (package nvidia-ml-py, module pynvml)."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

from frs.edge.telemetry.machine import MachineSource
from frs.edge.telemetry.power import GPU_BOARD
from frs.edge.telemetry.sample import Sample

# Of the reasons for which NVML says that clocks are lower than asked: power, heat, and the power supply's brake. Not idling,
# nor clocks that a user set. (nvmlClocksEventReasons in NVIDIA's NVML reference; the same bits bore "Throttle" before.)
_SW_POWER_CAP, _HW_SLOWDOWN, _SW_THERMAL, _HW_THERMAL, _POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
_THROTTLING = _SW_POWER_CAP | _HW_SLOWDOWN | _SW_THERMAL | _HW_THERMAL | _POWER_BRAKE


def open_gpu() -> tuple[NvmlSource | None, str]:
    """The GPU that CUDA uses first, or None and the reason."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, "nvidia-ml-py, which reads NVIDIA GPUs, is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"no NVIDIA GPU is seen here (NVML: {error})"
    try:
        return NvmlSource(nvml, _handle(nvml)), ""
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        return None, f"NVML does not open the GPU: {error}"


def _handle(nvml: Any) -> Any:
    """NVML orders by PCI bus, CUDA by speed and CUDA_VISIBLE_DEVICES: only the bus address tells which is the one."""
    address = first_gpu_address()
    if address is None:
        return nvml.nvmlDeviceGetHandleByIndex(0)
    return nvml.nvmlDeviceGetHandleByPciBusId(address.encode())


def first_gpu_address(driver: Any = None) -> str | None:
    """The PCI bus address of CUDA's device 0, "0000:01:00.0"; None without NVIDIA's driver or a GPU."""
    try:
        cuda = driver or ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, address = ctypes.c_int(), ctypes.create_string_buffer(32)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    if cuda.cuDeviceGetPCIBusId(address, len(address), device):
        return None
    return address.value.decode()


class NvmlSource:
    """The GPU's power, temperature, load, clock, memory and throttling, and psutil's of the CPU."""

    name = "nvml"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._rest = MachineSource(without_gpu="")
        self.missing = {"cpu_load": self._rest.missing.get("cpu_load", "psutil gave none")}
        self._reasons = _either(
            nvml, "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"
        )
        self._temperature = _either(nvml, "nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV")

    def read(self, time_ns: int) -> Sample:
        nvml = self._nvml
        power = self._ask("power_mw", nvml.nvmlDeviceGetPowerUsage)
        temperature = self._ask("temperature_c", self._temperature, nvml.NVML_TEMPERATURE_GPU)
        load = self._ask("gpu_load", nvml.nvmlDeviceGetUtilizationRates)
        memory = self._ask("memory_used_mb", nvml.nvmlDeviceGetMemoryInfo)
        clock = self._ask("clocks_mhz", nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM)
        reasons = self._ask("throttled", self._reasons)
        rest = self._rest.read(time_ns)
        return Sample(
            time_ns,
            power_mw={} if power is None else {GPU_BOARD: float(power)},
            temperature_c={**rest.temperature_c, **({} if temperature is None else {"gpu": float(temperature)})},
            cpu_load=rest.cpu_load,
            gpu_load=None if load is None else float(load.gpu),
            memory_used_mb=None if memory is None else memory.used / 1e6,
            clocks_mhz={**rest.clocks_mhz, **({} if clock is None else {"gpu": float(clock)})},
            throttled=None if reasons is None else bool(reasons & _THROTTLING),
        )

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _ask(self, field: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError as error:  # often "Not Supported": GPUs differ in what they report
            self.missing[field] = f"NVML: {error}"
            return None


def _either(nvml: Any, name: str, other: str) -> Any:
    """NVML renames its functions: the first of the two that this release of nvidia-ml-py has."""
    return getattr(nvml, name, None) or getattr(nvml, other)
