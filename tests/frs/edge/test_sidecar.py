"""Which plans are refused where, and what a damaged sidecar is told to be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frs.edge.machine import Gpu
from frs.edge.sidecar import PROVEN, Sidecar, refusal, sidecar_path
from frs.errors import EngineError

SHA, OTHER = "a" * 64, "b" * 64
ORIN = Gpu("Orin", "sm_87", "540.4.0")
GOOD = Sidecar(
    builder="tensorrt",
    version="10.3.0",
    target="sm_87",
    gpu="Orin",
    driver="540.4.0",
    profile={"images": [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]},
    proven="executed",
    message=None,
    seconds=12.5,
    size_mb=1.5,
    bytes=1_500_000,
    plan_sha256=SHA,
    onnx_sha256=OTHER,
    workspace_mb=64,
    log=["a warning"],
    properties={"classes": '["dög"]'},
)


def refused(sidecar: Sidecar, **here: Any) -> str | None:
    return refusal(sidecar, **{"library": "tensorrt", "version": "10.3.0", "gpu": ORIN, "plan_sha256": SHA, **here})


def test_where_it_was_built_it_may_be_loaded() -> None:
    assert refused(GOOD) is None
    assert refused(replace(GOOD, driver="535")) is None


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        ({"plan_sha256": OTHER}, f"its sha256 is {OTHER}, its sidecar is of {SHA}: the one or the other was replaced"),
        ({"version": "10.16.0"}, "it was built by tensorrt 10.3.0, and tensorrt 10.16.0 would load it"),
        ({"library": "tensorrt_rtx"}, "it was built by tensorrt 10.3.0, and tensorrt_rtx 10.3.0 would load it"),
        ({"gpu": None}, "it was built for sm_87, and no GPU is found here"),
        ({"gpu": Gpu("Thor", "sm_110", None)}, "it was built for sm_87, and the GPU here (Thor) is sm_110"),
        ({"gpu": Gpu("Another", "sm_87", None)}, "it was built on Orin, and the GPU here is Another"),
    ],
)
def test_elsewhere_it_is_refused_with_the_reason_and_the_command(here: dict[str, Any], reason: str) -> None:
    said = refused(GOOD, **here)
    assert said is not None
    assert said.startswith(reason + "; build it here: ")
    assert "`frs-pipeline run CONFIG --force engine`" in said
    assert "`frs-pipeline device run BUNDLE`" in said


def test_rtx_compiles_for_a_capability_not_for_a_model() -> None:
    built = replace(GOOD, builder="tensorrt_rtx", version="1.7.1", target="sm_86", gpu=None)
    here = {"library": "tensorrt_rtx", "version": "1.7.1"}
    assert refused(built, **here, gpu=Gpu("RTX 3060", "sm_86", None)) is None
    assert "the GPU here (RTX 4090) is sm_89" in str(refused(built, **here, gpu=Gpu("RTX 4090", "sm_89", None)))


def test_what_failed_is_no_plan() -> None:
    failed = replace(GOOD, proven="failed", message="no kernel for /nms", plan_sha256=None)
    assert str(refused(failed)).startswith("its build failed (no kernel for /nms); ")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    plan = tmp_path / "student.plan"
    sidecar_path(plan).write_text(GOOD.to_json())
    assert sidecar_path(plan).name == "student.plan.json"
    assert Sidecar.of(plan) == GOOD


def test_a_key_of_a_later_version_is_passed_over() -> None:
    assert Sidecar.from_json(json.dumps({**json.loads(GOOD.to_json()), "colour": 1}), Path("x")) == GOOD


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("proven", "guessed", f"one of {', '.join(PROVEN)}"),
        ("proven", None, "one of"),
        ("proven", [], "one of"),
        ("builder", 3, "text or null"),
        ("version", ["10.3"], "text or null"),
        ("bytes", True, "a whole number"),
        ("bytes", -1, "a whole number"),
        ("seconds", float("nan"), "a number from 0 on"),
        ("seconds", float("inf"), "a number from 0 on"),
        ("size_mb", "1", "a number from 0 on"),
        ("workspace_mb", 0, "a whole number above 0"),
        ("onnx_sha256", None, "64 hexadecimal digits"),
        ("plan_sha256", "../../etc", "64 hexadecimal digits"),
        ("profile", {"images": [[1, 3, 8, 8]]}, "input -> three shapes"),
        ("profile", {"images": [[1], [1], [-1]]}, "input -> three shapes"),
        ("log", "one line", "lines of text"),
        ("properties", {"classes": ["dog"]}, "text for every key"),
    ],
)
def test_a_malformed_value_is_named(key: str, value: object, expected: str) -> None:
    text = json.dumps({**json.loads(GOOD.to_json()), key: value})
    with pytest.raises(EngineError) as caught:
        Sidecar.from_json(text, Path("x.plan.json"))
    assert f"x.plan.json: {key} is " in str(caught.value)
    assert f"expected {expected}" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"builder": "\\ud800"}', "9" * 5_000])
def test_what_is_not_json_is_said_so(text: str) -> None:
    with pytest.raises(EngineError, match=r"x\.plan\.json: not JSON; build it here"):
        Sidecar.from_json(text, Path("x.plan.json"))


def test_another_json_is_said_so() -> None:
    with pytest.raises(EngineError, match=r"expected a mapping, got \[1\]"):
        Sidecar.from_json("[1]", Path("x"))
    with pytest.raises(EngineError, match="x: lacks builder, version, target"):
        Sidecar.from_json("{}", Path("x"))


def test_a_sidecar_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    plan = tmp_path / "x.plan"
    with pytest.raises(EngineError, match=r"x\.plan\.json: cannot be read \(No such file.*\).*copy it too, or build"):
        Sidecar.of(plan)
    with sidecar_path(plan).open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(EngineError, match="larger than 4 MiB"):
        Sidecar.of(plan)
    sidecar_path(plan).write_bytes(b"\xff\xfe")
    with pytest.raises(EngineError, match="not JSON"):
        Sidecar.of(plan)
