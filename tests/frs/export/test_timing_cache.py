from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from frs.edge.machine import Gpu
from frs.export import timing_cache
from tests.frs.export.stand_in import stand_in


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    path, said = tmp_path / "timing" / "x.timing", list[str]()
    assert timing_cache.load(path, said.append) == b""
    assert timing_cache.store(path, b"\n1\n2") is None
    assert timing_cache.load(path, said.append) == b"\n1\n2"
    assert said == []


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another"])
def test_damage_is_told_and_does_not_reach_the_library(damage: str, tmp_path: Path) -> None:
    path, said = tmp_path / "x.timing", list[str]()
    timing_cache.store(path, bytes(1000))
    data = path.read_bytes()
    damaged = {"cut": data[:-1], "changed": data[:-1] + b"\1", "empty": b"", "another": b"ptrt" + bytes(200)}
    path.write_bytes(damaged[damage])
    trt = stand_in("11")
    config = trt.Builder(trt.ILogger()).create_builder_config()
    assert timing_cache.attach(trt, config, path, said.append)
    assert trt.calls == [("create_timing_cache", b""), ("set_timing_cache", b"", False)]
    assert said == [f"{path}: a damaged timing cache, so this build does without it and writes it anew"]


def test_a_folder_that_cannot_be_used_is_told_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "x.timing").mkdir()
    said: list[str] = []
    assert timing_cache.load(tmp_path / "x.timing", said.append) == b""
    assert said == [f"{tmp_path / 'x.timing'}: cannot be read (Is a directory), so this build does without it"]
    told = timing_cache.store(tmp_path / "x.timing", b"times")
    assert told == f"{tmp_path / 'x.timing'}: the timing cache was not kept (Is a directory)"
    (tmp_path / "file").touch()
    assert "was not kept (" in str(timing_cache.store(tmp_path / "file" / "x.timing", b"times"))


def test_a_cache_is_of_one_library_version_and_gpu(tmp_path: Path) -> None:
    orin = Gpu("NVIDIA Orin (nvgpu)/../x", "sm_87", None)
    path = timing_cache.cache_path(tmp_path, stand_in("10.3"), orin)
    assert path.name == "tensorrt-10.3.0-NVIDIA_Orin_nvgpu_.._x-sm_87.timing"
    others = (
        timing_cache.cache_path(tmp_path, stand_in("10.16"), orin),
        timing_cache.cache_path(tmp_path, stand_in("10.3"), Gpu("Thor", "sm_87", None)),
        timing_cache.cache_path(tmp_path, stand_in("10.3"), Gpu(orin.name, "sm_110", None)),
    )
    assert len({path, *others}) == 4


def _write(path: Path, byte: int) -> None:
    for _ in range(50):
        assert timing_cache.store(path, bytes([byte]) * 200_000) is None


def test_two_builds_at_a_time_leave_one_whole_cache(tmp_path: Path) -> None:
    path, said = tmp_path / "x.timing", list[str]()
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, byte)) for byte in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(timing_cache.load(path, said.append)[:1])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert timing_cache.load(path, said.append) in (bytes([1]) * 200_000, bytes([2]) * 200_000)
    assert said == []
    assert seen <= {b"", b"\1", b"\2"}
    assert [each.name for each in tmp_path.iterdir()] == ["x.timing"]
