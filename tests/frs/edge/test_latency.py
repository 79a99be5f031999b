"""The timing routine on real files in real processes; nothing here asserts how long anything takes."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from PIL import Image

from frs.edge import _latency_worker, latency
from frs.edge.latency import Artifact, profile_artifacts
from frs.edge.measured import Measured
from frs.edge.predictor import ModelInfo, Split
from frs.edge.profile_row import Beside, profile_row
from frs.edge.telemetry import Sample, Sampler
from frs.errors import ExportError
from frs.export.onnx import export_onnx
from tests.frs.export.lab import busy_detector, pictures


class Fake(Sampler):
    """One sample, which tells a power of 5 W or nothing; remembers how it was used."""

    source = "fake"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.told = [Sample(0, **fields)]
        self.entered = self.left = False

    def samples(self) -> list[Sample]:
        assert self.entered
        return self.told

    def __enter__(self) -> Fake:
        self.entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True

    def _trouble(self) -> None:
        return None

    def _reason(self, field: str) -> str:
        return f"no {field} here"


def exported(path: Path, batch: int | None) -> Path:
    export_onnx(busy_detector(pictures(2, 64, 96)), path, height=64, width=96, batch=batch)
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return Artifact("student", "fp32", "onnxruntime", exported(tmp_path_factory.mktemp("latency") / "x.onnx", 2))


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((40, 50 + i, 3), 90, np.uint8)).save(path)
    return paths


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Measured]:
    """What the processes told, filled by `profile_artifacts`."""
    seen: list[Measured] = []

    def remember(each: Measured, beside: Beside) -> dict[str, Any]:
        seen.append(each)
        return profile_row(each, beside)

    monkeypatch.setattr(latency, "profile_row", remember)
    return seen


def test_rows_of_the_report(artifact: Artifact, images: list[Path], measured: list[Measured]) -> None:
    parts: list[tuple[float, float]] = []
    fake = Fake()
    first, second = profile_artifacts(
        [artifact, Artifact("other", "fp32", "onnxruntime", artifact.path)],
        images,
        runs=25,
        seconds=0.5,
        threads=1,
        progress=lambda done, total: parts.append((done, total)),
        telemetry=lambda: fake,
    )
    assert fake.left
    assert (first["model"], second["model"]) == ("student", "other")
    assert set(first) == {
        *(
            "model",
            "runtime",
            "precision",
            "device",
            "provider",
            "threads",
            "batch",
            "latency_ms",
            "stages_ms",
            "gpu_ms",
        ),
        *("throughput_ips", "cold_start_ms", "peak_memory_mb", "device_memory_mb", "artifact_mb", "energy_mj"),
        *("energy_rail", "power_idle_w", "power_mode", "clocks", "temperature_c", "throttled", "other_load"),
        *("warnings", "missing"),
    }
    assert (first["batch"], first["threads"], first["provider"]) == (2, 1, "CPUExecutionProvider")
    timed = first["latency_ms"]
    assert 0 < timed["min"] <= timed["p50"] <= timed["p90"] <= timed["p95"] <= timed["p99"]
    assert timed["p50_interval"][0] <= timed["p50"] <= timed["p50_interval"][1]
    assert first["throughput_ips"] == pytest.approx(2000 / timed["mean"], rel=1e-3)
    assert first["stages_ms"]["infer"] < timed["p99"]
    assert first["cold_start_ms"] > timed["min"], "the first answer is after opening the file"
    assert first["peak_memory_mb"] is None or 1 < first["peak_memory_mb"] < 500
    assert first["missing"]["throttled"] == "no throttled here"
    assert parts == sorted(parts)
    assert parts[-1] == (1, 1)

    for row, each in zip((first, second), measured, strict=True):
        assert row["latency_ms"]["runs"] >= 25
        assert row["latency_ms"]["seconds"] >= 0.5
        assert sum(len(block.runs) for block in each.blocks) == row["latency_ms"]["runs"]
        for run in (run for block in each.blocks for run in block.runs):
            assert run.total == run.preprocess + run.session + run.postprocess
            assert run.infer <= run.session
    in_turn = sorted(
        (block.start_ns, block.end_ns, place) for place, each in enumerate(measured) for block in each.blocks
    )
    assert [place for _, _, place in in_turn] == [0, 1] * 8
    for (_, end, _), (start, _, _) in pairwise(in_turn):
        assert end <= start, "no two blocks at a time"


def test_each_batch_is_a_row_of_its_own(tmp_path: Path, images: list[Path]) -> None:
    path = exported(tmp_path / "open.onnx", None)
    artifacts = [Artifact(model, "fp32", "onnxruntime", path) for model in ("teacher", "student")]
    rows = profile_artifacts(artifacts, images, runs=20, seconds=0, threads=1, batches=[3, 1], telemetry=Fake)
    assert [(row["model"], row["batch"]) for row in rows] == [
        ("teacher", 3),
        ("teacher", 1),
        ("student", 3),
        ("student", 1),
    ]


def test_idle_is_measured_only_where_there_is_a_power_rail(
    artifact: Artifact, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(latency, "sleep", waited.append)
    assert latency._idle(entered(Fake())) is None
    assert waited == []
    window = latency._idle(entered(Fake(power_mw={"VDD_IN": 5000.0})))
    assert window is not None
    assert waited == [1.5]


def entered(fake: Fake) -> Fake:
    return fake.__enter__()


def test_a_file_that_does_not_open_is_an_error_in_words(artifact: Artifact, images: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(artifact.path.read_bytes()[:5000])
    fake = Fake()
    with pytest.raises(
        ExportError, match=r"broken\.onnx: the process that times it ended with status 1: .*cannot open"
    ):
        profile_artifacts(
            [artifact, Artifact("b", "fp32", "onnxruntime", broken)], images, runs=20, telemetry=lambda: fake
        )
    assert fake.left


def test_a_file_that_is_not_ours_is_refused(artifact: Artifact, images: list[Path], tmp_path: Path) -> None:
    model = onnx.load(artifact.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "theirs.onnx")
    with pytest.raises(ExportError, match=r"theirs\.onnx: .*did not export it"):
        profile_artifacts([Artifact("s", "fp32", "onnxruntime", tmp_path / "theirs.onnx")], images, telemetry=Fake)


def test_a_plan_without_its_sidecar_is_refused(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "s.plan").write_bytes(b"plan")
    with pytest.raises(ExportError, match=r"s\.plan: the process that times it ended with status 1: .*s\.plan\.json"):
        profile_artifacts([Artifact("s", "fp32", "tensorrt", tmp_path / "s.plan")], images, telemetry=Fake)


def test_a_batch_that_the_graph_does_not_take_is_an_error(artifact: Artifact, images: list[Path]) -> None:
    with pytest.raises(ExportError, match="exported for batches of 2, cannot be timed with 1"):
        profile_artifacts([artifact], images, runs=20, batches=[1], telemetry=Fake)


def test_a_process_that_dies_under_way_is_an_error(
    artifact: Artifact, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(done: float, _: float) -> None:
        if done > 0.5:
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
        profile_artifacts([artifact], images, runs=40, seconds=0, progress=kill, telemetry=Fake)


@pytest.mark.parametrize("answer", ["", '{"runs": [[1, 2'])
def test_an_answer_that_was_cut_off_is_an_error(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    dying = tmp_path / "python"
    dying.write_text(f"#!/bin/sh\nread request\nprintf '%s' '{answer}'\nexit 3\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(ExportError, match="ended with status 3"):
        latency._Worker(artifact, tmp_path, {"threads": 1})


def test_what_a_gpus_session_tells_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    class OnGpu:
        """Two boxes in each image, in made-up time."""

        info, batch, provider, device_memory_mb = ModelInfo(32, 64, ("a",), (1,)), None, "tensorrt 0", 0.0

        def run_split(self, images: npt.NDArray[np.uint8]) -> tuple[list[npt.NDArray[Any]], Split]:
            seen.append(images.shape)
            self.device_memory_mb = 12.5
            n = len(images)
            outputs: list[Any] = [np.zeros((n, 9, 4), np.float32), np.zeros((n, 9)), np.zeros((n, 9)), np.full(n, 2)]
            return outputs, Split(copy_in=1, infer=2, copy_out=3, gpu=4)

    session = OnGpu()
    monkeypatch.setattr(_latency_worker, "open_session", lambda path, threads: session)
    image = np.zeros((50, 40, 3), np.uint8)
    timed = _latency_worker._Timed({"path": "x.plan", "threads": 1, "batch": 3}, [image, image])
    opened = timed.open()
    assert (opened["provider"], opened["batch"]) == ("tensorrt 0", 3)
    assert timed.warm_up()["runs"] >= 9
    session.device_memory_mb = 99.0  # another process opened its own file
    seen.clear()
    block = timed.block(runs=5, seconds=0)
    assert len(block["runs"]) == 5
    assert [(run.copy_in, run.infer, run.copy_out, run.gpu) for run in block["runs"]] == [(1, 2, 3, 4)] * 5
    assert block["start_ns"] < block["end_ns"]
    assert timed.memory()["device_mb"] == 12.5
    assert seen == [(3, 3, 32, 64)] * (2 + 5), "two that are not counted, and those of the block"
    alone = _latency_worker._Timed({"path": "x.plan", "threads": 1, "batch": None}, [image])
    assert alone.open()["batch"] == 1, "where the file leaves it open"


def test_a_peak_that_cannot_be_reset_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, text: str) -> None:
        raise PermissionError(self)

    monkeypatch.setattr(Path, "write_text", refuse)
    timed = _latency_worker._Timed({}, [])
    timed.device_mb = None
    assert timed.memory() == {"peak_mb": None, "device_mb": None}


def test_too_few_runs_are_refused(artifact: Artifact, images: list[Path]) -> None:
    with pytest.raises(ValueError, match="fewer than 20"):
        profile_artifacts([artifact], images, runs=19)
