"""Choosing what a machine is read through."""

from __future__ import annotations

import shutil
from pathlib import Path

from frs.edge.telemetry.collect import PollingSampler, Sampler
from frs.edge.telemetry.machine import MachineSource
from frs.edge.telemetry.nvml import open_gpu
from frs.edge.telemetry.process import TegrastatsSampler
from frs.edge.telemetry.sysfs import is_jetson
from frs.edge.telemetry.throttling import JetsonThrottling


def sampler(interval_s: float = 0.1, root: Path = Path("/")) -> Sampler:
    """A context manager that samples while it is open: `tegrastats` where there is one, else NVML, else psutil.

    root: where /sys and /proc are found. Never raises: what cannot be read is in `missing`. Enter it in a thread that lives
    as long as the measurement: the kernel ends `tegrastats` with the thread that started it.
    """
    program = shutil.which("tegrastats")
    throttling = JetsonThrottling(root)
    if program is not None:
        return TegrastatsSampler(program, interval_s, throttling)
    if is_jetson(root):
        why = "tegrastats is not on PATH; in a container, mount /usr/bin/tegrastats"
        return PollingSampler(MachineSource(without_gpu=why, throttling=throttling), interval_s)
    gpu, why = open_gpu()
    return PollingSampler(MachineSource(without_gpu=why) if gpu is None else gpu, interval_s)
