"""The timing routine on a real file; nothing here asserts how long anything takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frs.edge import latency
from frs.edge.latency import Artifact, median_interval, profile_artifacts, summarise
from frs.errors import ExportError
from frs.export.onnx import export_onnx
from tests.frs.export.lab import busy_detector, pictures


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("latency") / "x.onnx"
    export_onnx(busy_detector(pictures(2, 64, 96)), path, height=64, width=96, batch=2)
    return Artifact("student", "fp32", "onnxruntime", path)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((40, 50 + i, 3), 90, np.uint8)).save(path)
    return paths


def test_an_entry_of_the_report(artifact: Artifact, images: list[Path]) -> None:
    seen: list[tuple[float, float]] = []
    first, second = profile_artifacts(
        [artifact, Artifact("other", "fp32", "onnxruntime", artifact.path)],
        images,
        runs=25,
        warmup=1,
        block=10,
        threads=1,
        batch=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (first["model"], second["model"]) == ("student", "other")
    assert set(first) == {
        *("model", "runtime", "precision", "device", "batch", "latency_ms", "stages_ms", "throughput_ips"),
        *("peak_memory_mb", "artifact_mb", "energy_mj", "power_mode", "clocks", "throttled", "missing"),
        *("threads", "provider"),
    }
    assert (first["batch"], first["threads"], first["provider"]) == (2, 1, "CPUExecutionProvider")
    latency = first["latency_ms"]
    assert set(latency) == {"p50", "p50_interval", "p90", "p99", "mean", "min", "runs"}
    assert latency["runs"] == 25
    assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
    assert latency["p50_interval"][0] <= latency["p50"] <= latency["p50_interval"][1]
    assert first["throughput_ips"] == pytest.approx(2000 / latency["mean"], rel=1e-3)
    assert set(first["stages_ms"]) == {"preprocess", "infer", "postprocess"}
    assert first["stages_ms"]["infer"] < latency["p99"]
    assert first["peak_memory_mb"] is None or 1 < first["peak_memory_mb"] < 500
    assert first["artifact_mb"] == pytest.approx(artifact.path.stat().st_size / 1e6, abs=1e-3)
    unmeasured = {key for key in first if first[key] is None}
    assert unmeasured == set(first["missing"])
    # Blocks alternate: 10, 10, 5 of each in turn.
    assert seen == [(10, 50), (20, 50), (30, 50), (40, 50), (45, 50), (50, 50)]


def test_a_file_that_does_not_open_is_an_error_in_words(artifact: Artifact, images: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(artifact.path.read_bytes()[:5000])
    with pytest.raises(
        ExportError, match=r"broken\.onnx: the process that times it ended with status 1: .*cannot open"
    ):
        profile_artifacts([artifact, Artifact("b", "fp32", "onnxruntime", broken)], images, runs=20, batch=2)


def test_a_batch_that_the_graph_does_not_take_is_an_error(artifact: Artifact, images: list[Path]) -> None:
    with pytest.raises(ExportError, match="exported for batches of 2, cannot be timed with 1"):
        profile_artifacts([artifact], images, runs=20, batch=1)


def test_a_process_that_dies_under_way_is_an_error(
    artifact: Artifact, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: float) -> None:
        for worker in started:
            worker._process.kill()
            worker._process.wait()

    started: list[Any] = []
    opened = latency._Worker.__init__

    def remember(self: Any, *arguments: Any) -> None:
        opened(self, *arguments)
        started.append(self)

    monkeypatch.setattr(latency._Worker, "__init__", remember)
    with pytest.raises(ExportError, match="ended with status -9"):
        profile_artifacts([artifact], images, runs=40, block=20, batch=2, progress=kill)


def test_too_few_runs_are_refused(artifact: Artifact, images: list[Path]) -> None:
    with pytest.raises(ValueError, match="fewer than 20"):
        profile_artifacts([artifact], images, runs=19)


def test_summary_by_hand() -> None:
    summary = summarise(np.arange(100, 0, -1.0))  # 100 .. 1
    assert summary == {
        "p50": 50.0,
        "p50_interval": [40.0, 61.0],  # the tabulated ranks for n = 100
        "p90": 90.0,
        "p99": 99.0,
        "mean": 50.5,
        "min": 1.0,
        "runs": 100,
    }


@pytest.mark.parametrize(("n", "low"), [(6, 0), (8, 0), (9, 1), (20, 5), (100, 39), (200, 85)])
def test_median_interval_covers_as_much_as_it_says_and_no_more_than_needed(n: int, low: int) -> None:
    assert median_interval(n) == (low, n - 1 - low)

    def coverage(rank: int) -> float:
        return 1.0 - 2 * sum(math.comb(n, k) for k in range(rank + 1)) / float(2**n)

    assert coverage(low) >= 0.95 > coverage(low + 1)
