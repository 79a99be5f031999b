from __future__ import annotations

import json
import os
import platform
from typing import Any

import numpy

from frs.edge.machine import Gpu, available_cores, describe_machine, find_gpu, package_versions


def test_the_machine_in_json_without_its_name() -> None:
    machine = describe_machine()
    assert set(machine) == {"cpu", "cores", "memory_gb", "system", "architecture", "python", "gpu"}
    assert machine["cpu"]
    assert 1 <= machine["cores"] == available_cores() <= (os.cpu_count() or 1)
    assert machine["memory_gb"] is None or machine["memory_gb"] > 0.1
    text = json.dumps(machine)
    assert platform.node() not in text.split('"')
    assert json.loads(text) == describe_machine()  # the same whenever it is asked


def test_versions_of_what_is_installed() -> None:
    assert package_versions(["numpy", "no-such-distribution"]) == {"numpy": numpy.__version__}


class Driver:
    """NVIDIA's driver library with one Orin, or with a failing call."""

    def __init__(self, devices: int = 1, failing: str = "") -> None:
        self.devices = devices
        self.failing = failing

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            if name == self.failing:
                return 999
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = self.devices
            elif name == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            elif name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 7}[arguments[1]]
            return 0

        return call


def test_gpu() -> None:
    found = find_gpu(Driver())
    assert found is not None
    assert (found.name, found.sm) == ("Orin", "sm_87")
    assert isinstance(found, Gpu)


def test_no_gpu() -> None:
    assert find_gpu(Driver(devices=0)) is None
    assert find_gpu(Driver(failing="cuInit")) is None
    assert find_gpu(Driver(failing="cuDeviceGetAttribute")) is None
