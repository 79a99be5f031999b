"""An NVIDIA GPU of a workstation or a server, through NVML (package nvidia-ml-py, module pynvml)."""

from __future__ import annotations

import ctypes
import importlib
from typing import Any

from frs.edge.telemetry.machine import MachineSource
from frs.edge.telemetry.power import GPU_BOARD
from frs.edge.telemetry.sample import Sample

# Of the reasons for which NVML says that clocks are lower than asked: power, heat, and the power supply's brake. Not idling,
# nor clocks that a user set. (nvmlClocksEventReasons in NVIDIA's NVML reference; "Throttle" stood for "Event" before.)
_SW_POWER_CAP, _HW_SLOWDOWN, _SW_THERMAL, _HW_THERMAL, _POWER_BRAKE = 0x4, 0x8, 0x20, 0x40, 0x80
THROTTLING = _SW_POWER_CAP | _HW_SLOWDOWN | _SW_THERMAL | _HW_THERMAL | _POWER_BRAKE


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
        # NVML orders by PCI bus, CUDA by speed and CUDA_VISIBLE_DEVICES: only the bus address tells which is the one.
        address = first_gpu_address()
        if address is not None:
            return NvmlSource(nvml, nvml.nvmlDeviceGetHandleByPciBusId(address.encode())), ""
        why = "CUDA sees no GPU here"
    except nvml.NVMLError as error:
        why = f"NVML does not open the GPU: {error}"
    nvml.nvmlShutdown()
    return None, why


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
    """The GPU's power, temperature, load, clock, memory and throttling, and psutil's readings of the CPU."""

    name = "nvml"

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._machine = MachineSource(without_gpu="")
        self.missing = {"cpu_load": self._machine.missing.get("cpu_load", "psutil gave none")}

    def read(self, time_ns: int) -> Sample:
        # Some functions have two names: newer drivers drop the one, older ones lack the other.
        temperature = self._ask(
            "temperature_c",
            ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"),
            self._nvml.NVML_TEMPERATURE_GPU,
        )
        reasons = self._ask(
            "throttled",
            ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
        )
        power = self._power()
        load = self._ask("gpu_load", ("nvmlDeviceGetUtilizationRates",))
        memory = self._ask("memory_used_mb", ("nvmlDeviceGetMemoryInfo",))
        clock = self._ask("clocks_mhz", ("nvmlDeviceGetClockInfo",), self._nvml.NVML_CLOCK_SM)
        machine = self._machine.read(time_ns)
        return Sample(
            time_ns,
            power_mw={} if power is None else {GPU_BOARD: float(power)},
            temperature_c={**machine.temperature_c, **({} if temperature is None else {"gpu": float(temperature)})},
            cpu_load=machine.cpu_load,
            gpu_load=None if load is None else float(load.gpu),
            memory_used_mb=None if memory is None else memory.used / 1e6,
            clocks_mhz={**machine.clocks_mhz, **({} if clock is None else {"gpu": float(clock)})},
            throttled=None if reasons is None else bool(reasons & THROTTLING),
        )

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _power(self) -> int | None:
        """Milliwatts. The momentary value where the driver has one: from Ampere on (but for GA100) nvmlDeviceGetPowerUsage is
        the mean of the last second, which would smear one block over the next."""
        fields = self._ask("power_mw", ("nvmlDeviceGetFieldValues",), [self._nvml.NVML_FI_DEV_POWER_INSTANT])
        if fields is not None and fields[0].nvmlReturn == self._nvml.NVML_SUCCESS:
            return int(fields[0].value.uiVal)
        usage = self._ask("power_mw", ("nvmlDeviceGetPowerUsage",))
        return None if usage is None else int(usage)

    def _ask(self, field: str, names: tuple[str, ...], *arguments: Any) -> Any:
        """What the first of these functions that works answers; None where none does, which `missing` then explains."""
        for name in names:
            try:
                return getattr(self._nvml, name)(self._handle, *arguments)
            except AttributeError:
                self.missing[field] = f"this nvidia-ml-py has no {name}"
            except self._nvml.NVMLError as error:  # often "Not Supported": GPUs differ in what they report
                self.missing[field] = f"{name}: {error}"
        return None
