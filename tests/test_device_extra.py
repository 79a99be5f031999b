"""That the extra `device` can be installed where it is meant to be: a resolver asked on behalf of a Jetson."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.packages import from_the_index

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("device", "ort")


def requirements() -> list[Requirement]:
    """Those of the project and its extras."""
    project = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML").loads(PROJECT.read_text())["project"]
    optional = project["optional-dependencies"]
    return [Requirement(text) for text in [*project["dependencies"], *(t for extra in EXTRAS for t in optional[extra])]]


def resolved(wanted: list[Requirement], python: str, glibc: int, folder: Path) -> dict[str, Any]:
    """name -> what pip would install on an aarch64 of that Python and glibc 2.x, wheels alone.

    pip chooses wheels for another machine, but reads markers (`; python_version < "3.11"`) as of its own; so they are read
    here.
    """
    machine = {
        **{"python_version": python, "python_full_version": f"{python}.12", "implementation_version": f"{python}.12"},
        **{"platform_machine": "aarch64", "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
        **{"implementation_name": "cpython", "platform_python_implementation": "CPython", "extra": ""},
    }
    abi = "cp" + python.replace(".", "")
    platforms = ["linux_aarch64", "manylinux2014_aarch64", *(f"manylinux_2_{n}_aarch64" for n in range(17, glibc + 1))]
    there = ["--python-version", python, "--implementation", "cp", "--abi", abi]
    there += [f"--platform={platform}" for platform in platforms]

    def asked_for(each: Requirement) -> bool:
        return each.marker is None or each.marker.evaluate(machine)

    names = [without_marker(each) for each in wanted if asked_for(each)]
    report = json.loads(
        from_the_index(
            *("install", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--quiet", "--report", "-"),
            *("--target", str(folder / "nothing"), *there, *names),
        )
    )
    found: dict[str, Any] = {
        str(canonicalize_name(each["metadata"]["name"])): each["metadata"] for each in report["install"]
    }
    needed = [Requirement(text) for each in found.values() for text in each.get("requires_dist", [])]
    overlooked = [each for each in needed if asked_for(each) and canonicalize_name(each.name) not in found]
    return resolved([*wanted, *overlooked], python, glibc, folder) if overlooked else found


def without_marker(requirement: Requirement) -> str:
    return str(requirement).split(";")[0]


@pytest.mark.parametrize(
    ("python", "glibc", "cuda"), [("3.10", 35, "12."), ("3.12", 39, "13.")], ids=["JetPack 6", "JetPack 7"]
)
def test_a_jetson_finds_a_wheel_of_everything(python: str, glibc: int, cuda: str, tmp_path: Path) -> None:
    """JetPack 6 is Ubuntu 22.04 with CUDA 12.6, JetPack 7 Ubuntu 24.04 with CUDA 13."""
    found = resolved(requirements(), python, glibc, tmp_path)
    assert {"numpy", "pillow", "pycocotools", "psutil", "jinja2", "onnxruntime", "nvidia-ml-py"} <= set(found)
    assert found["cuda-bindings"]["version"].startswith(cuda)
    assert "torch" not in found
