"""Which calls the builder makes of each family of versions, seen through stand-ins: its choices, not NVIDIA's answers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from frs.edge.machine import Gpu
from frs.export import _build_engine, limited, timing_cache
from tests.frs.export.stand_in import FAMILIES, stand_in

ORIN = Gpu("Orin", "sm_87", "540.4.0")
ADA = Gpu("NVIDIA RTX 4000 Ada", "sm_89", "580.65")
FULL = [family for family, kind in FAMILIES.items() if kind.name == "tensorrt"]


def ask(module: Any, folder: Path, gpu: Gpu | None, target: str | None = None, timings: Path | None = None) -> Any:
    request = {
        "onnx": "x.onnx",
        "plan": str(folder / "plan"),
        "target": target,
        "workspace_mb": 64,
        "batches": [1, 2, 4],
        "timings": timings and str(timings),
    }
    return _build_engine.build(module, request, gpu)


@pytest.mark.parametrize(
    ("family", "flags"), [("10.3", 0b10), ("10.16", 0b10), ("11", 0b10), ("11, when the flag goes", 0)]
)
def test_tensorrt_is_asked_for_strong_typing_where_it_can_be(family: str, flags: int, tmp_path: Path) -> None:
    trt = stand_in(family)
    told = ask(trt, tmp_path, ORIN, target="sm_86")
    assert trt.calls == [
        ("create_network", flags),
        ("parse_from_file", "x.onnx"),
        ("set_memory_pool_limit", "WORKSPACE", 64 << 20),
        ("build_serialized_network",),
        ("deserialize_cuda_engine", b"plan"),
    ]
    # Whatever the configured target: the plan is for the GPU that it was built on.
    assert (told["target"], told["proven"], told["profile"]) == ("sm_87", "deserialised", None)
    assert (told["gpu"], told["driver"]) == ("Orin", "540.4.0")
    assert (told["builder"], told["version"]) == ("tensorrt", FAMILIES[family].version)
    assert (tmp_path / "plan").read_bytes() == b"plan"


def test_rtx_is_told_its_capability_and_proves_no_more_than_a_plan(tmp_path: Path) -> None:
    trt = stand_in("rtx")
    told = ask(trt, tmp_path, None)
    assert trt.calls == [
        ("create_network", 0b10),
        ("parse_from_file", "x.onnx"),
        ("set_memory_pool_limit", "WORKSPACE", 64 << 20),
        ("set_compute_capability", "SM86", 0),
        ("build_serialized_network",),
    ]
    assert (told["target"], told["proven"]) == ("sm_86", "planned")


@pytest.mark.parametrize(
    ("gpu", "target", "asked", "built_for", "proven"),
    [
        (None, "sm_120", "SM120", "sm_120", "planned"),
        (ADA, None, "CURRENT", "sm_89", "deserialised"),
        (ADA, "sm_89", "SM89", "sm_89", "deserialised"),
        (ADA, "sm_86", "SM86", "sm_86", "planned"),  # another GPU's plan is not tried here
    ],
)
def test_rtx_builds_for_what_is_named_or_here(
    gpu: Gpu | None, target: str | None, asked: str, built_for: str, proven: str, tmp_path: Path
) -> None:
    trt = stand_in("rtx")
    told = ask(trt, tmp_path, gpu, target)
    assert trt.calls.of("set_compute_capability") == [(asked, 0)]
    assert (told["target"], told["proven"]) == (built_for, proven)


def test_what_rtx_does_not_know_is_not_built(tmp_path: Path) -> None:
    trt = stand_in("rtx")
    told = ask(trt, tmp_path, None, "sm_87")
    assert told["proven"] == "failed"
    assert "cannot build for sm_87, it knows sm_120, sm_121, sm_75, sm_80, sm_86, sm_89; a Jetson's" in told["message"]
    assert trt.calls == []


@pytest.mark.parametrize("family", FULL)
def test_tensorrt_builds_nothing_without_a_gpu(family: str, tmp_path: Path) -> None:
    told = ask(stand_in(family), tmp_path, None, "sm_86")
    assert told["proven"] == "failed"
    assert told["message"].endswith("builds on a GPU, and none is found here")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 4, -1])
def test_only_an_open_batch_gets_a_profile(family: str, batch: int, tmp_path: Path) -> None:
    trt = stand_in(family, batch=batch)
    told = ask(trt, tmp_path, ORIN if family in FULL else None)
    shapes = [[1, 3, 8, 8], [2, 3, 8, 8], [4, 3, 8, 8]]
    if batch == -1:
        assert trt.calls.of("add_optimization_profile") == [({"images": tuple(shapes)},)]
        assert told["profile"] == {"images": shapes}
    else:
        assert trt.calls.of("add_optimization_profile") == []
        assert told["profile"] is None


@pytest.mark.parametrize("family", FULL)
def test_tensorrt_keeps_its_times(family: str, tmp_path: Path) -> None:
    trt = stand_in(family)
    ask(trt, tmp_path, ORIN, timings=tmp_path / "timings")
    assert trt.calls[3:5] == [("create_timing_cache", b""), ("set_timing_cache", b"", False)]
    left = tmp_path / f"tensorrt-{FAMILIES[family].version}-Orin-sm_87.timing"
    assert left.read_bytes() == b"+"
    assert not (tmp_path / "timings").exists()  # the builder may be killed at any moment, so it writes nothing there
    timing_cache.store(tmp_path / "timings" / left.name, b"times")
    again = stand_in(family)
    ask(again, tmp_path, ORIN, timings=tmp_path / "timings")
    assert again.calls.of("create_timing_cache") == [(b"times",)]
    assert left.read_bytes() == b"times+"


@pytest.mark.parametrize("family", FULL)
def test_times_of_another_machine_are_passed_over(family: str, tmp_path: Path) -> None:
    trt = stand_in(family, takes_cache=False)
    kept = timing_cache.cache_path(tmp_path / "timings", trt, ORIN)
    timing_cache.store(kept, b"foreign")
    told = ask(trt, tmp_path, ORIN, timings=tmp_path / "timings")
    assert trt.calls.of("set_timing_cache") == [(b"foreign", False), (b"", False)]
    assert told["proven"] == "deserialised"
    assert told["log"][0] == f"{kept}: a timing cache of another GPU or version, so this build does without it"


def test_rtx_has_times_that_do_nothing_so_they_are_left_alone(tmp_path: Path) -> None:
    """Its calls are there, and say that they are no-ops; it chooses kernels where the plan is loaded."""
    trt = stand_in("rtx")
    ask(trt, tmp_path, ADA, timings=tmp_path / "timings")
    assert trt.calls.of("create_timing_cache") == trt.calls.of("set_timing_cache") == []
    assert [path.name for path in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refusal_is_told_in_the_librarys_words(family: str, tmp_path: Path) -> None:
    gpu = ORIN if family in FULL else None
    parsed = ask(stand_in(family, parses=False), tmp_path, gpu)
    assert (parsed["proven"], parsed["log"]) == ("failed", ["no importer for /nms"])
    assert parsed["message"] == "the parser refused the graph: no importer for /nms"
    built = ask(stand_in(family, builds=False), tmp_path, gpu)
    assert built["message"] == "the graph was not built: no kernel for /nms"
    # INFO lines hold bytes of the weights.
    assert built["log"] == ["w" * limited.LINE_LENGTH, "no kernel for /nms"]
    assert list(tmp_path.iterdir()) == []


def test_the_log_is_bounded() -> None:
    logger = _build_engine.make_logger(stand_in("11"))
    for i in range(1000):
        logger.log(logger.ERROR, f"{i}" * 1000)
    assert (len(logger.lines), len(logger.errors)) == (limited.KEPT_LINES, limited.KEPT_LINES)
    assert logger.errors[-1] == ("999" * 1000)[: limited.LINE_LENGTH]


def test_tensorrt_is_chosen_only_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    full, rtx = SimpleNamespace(), SimpleNamespace()
    monkeypatch.setitem(sys.modules, "tensorrt", full)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    assert _build_engine.choose(ORIN) == (full, None)
    assert _build_engine.choose(None) == (rtx, None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert _build_engine.choose(ORIN) == (rtx, None)


def test_the_reason_says_what_could_not_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    trt, said = _build_engine.choose(ORIN)
    assert trt is None
    assert said is not None
    assert "tensorrt cannot be imported (" in said
    assert "tensorrt_rtx cannot be imported (" in said
    assert "none is found here" in str(_build_engine.choose(None)[1])
