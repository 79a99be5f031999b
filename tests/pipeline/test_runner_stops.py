"""What stops a run, and what is left of it."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, GateFailed, StageError, StageFailed, StoreError
from pipeline.manifest import Manifest
from pipeline.stage import Context, Metrics, Stage
from tests.pipeline.lab import Lab


def test_until_stops_and_keeps_what_the_run_had(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run(until="teacher")
    assert lab.ran == ["data", "teacher"]
    lab.run()
    assert lab.ran == ["export"]
    assert "export" in lab.run(until="data").stages
    assert (lab.runs / "one" / "teacher.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"until": "studnet"}, "--until studnet: there is no such stage; the stages are data, teacher, export"),
        ({"force": ["x"]}, "--force x: there is no such stage"),
        ({"until": "data", "force": ["export"]}, "--force export: this stage comes after --until data"),
    ],
)
def test_wrong_stage_names_are_usage_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    lab = Lab(tmp_path)
    with pytest.raises(ConfigError, match=message):
        lab.run(**options)
    assert not lab.runs.exists()


def test_a_failing_stage_leaves_what_was_finished(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    def fail(context: Context) -> None:
        (context.scratch / "checkpoint").write_text("epoch 3")
        raise RuntimeError("out of memory")

    lab.hooks["export"] = fail
    with pytest.raises(StageFailed, match="stage export: out of memory") as caught:
        lab.run()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert (lab.runs / "one" / "teacher.bin").exists()
    manifest = Manifest.load(lab.runs / "one")
    assert manifest is not None
    assert list(manifest.stages) == ["data", "teacher"]
    assert "export: stopped after" in lab.text

    seen: list[str] = []
    lab.hooks["export"] = lambda context: seen.append((context.scratch / "checkpoint").read_text())
    assert lab.run().stages["export"].entry.continued
    assert lab.ran == ["export"]
    assert seen == ["epoch 3"]
    assert not (lab.entries("export")[0] / "scratch").exists()


def test_half_written_outputs_of_an_earlier_attempt_do_not_count(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    def fail(context: Context) -> None:
        context.outputs["model"].write_text("half")
        raise RuntimeError

    lab.hooks["export"] = fail
    with pytest.raises(StageFailed):
        lab.run()
    lab.hooks["export"] = lambda context: seen.append(context.outputs["model"].exists())
    seen: list[bool] = []
    lab.run()
    assert seen == [False]


def test_force_starts_anew_and_its_own_attempt_is_continued(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    found: list[list[str]] = []

    def fail(context: Context) -> None:
        found.append(sorted(path.name for path in context.scratch.iterdir()))
        (context.scratch / f"attempt{len(found)}").touch()
        raise RuntimeError

    lab.hooks["teacher"] = fail
    for force in ([], [], ["teacher"], ["teacher"]):
        with pytest.raises(StageFailed):
            lab.run(force=force)
    assert found == [[], ["attempt1"], [], ["attempt3"]]


def test_broken_promises_name_the_stage(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    export = lab.graph()[2]

    def graph(run: Any, **changes: Any) -> tuple[Stage, ...]:
        return (*lab.graph()[:2], dataclasses.replace(export, run=run, **changes))

    def extra(context: Context) -> dict[str, Any]:
        context.outputs["model"].write_text("x")
        context.outputs["model"].with_name("model.onnx.data").write_text("x")
        return {}

    def nan(context: Context) -> dict[str, Any]:
        context.outputs["model"].write_text("x")
        return {"AP": float("nan")}

    def edit(context: Context) -> dict[str, Any]:
        context.outputs["model"].write_text("x")
        lab.annotations.write_text("edited meanwhile")
        return {}

    with pytest.raises(StageError, match=r"stage export ended without its output model \(model.onnx\)"):
        lab.run(graph=graph(lambda context: {}))
    with pytest.raises(StageError, match=r"stage export wrote model.onnx.data, which it does not promise"):
        lab.run(graph=graph(extra))
    with pytest.raises(StageError, match="stage export returned metrics that JSON cannot hold"):
        lab.run(graph=graph(nan))
    with pytest.raises(StageError, match="stage export depends on something that JSON cannot hold"):
        lab.run(graph=graph(extra, facts=lambda _: {"path": tmp_path}))
    with pytest.raises(StageError, match="stage export: a file that it reads changed while it ran"):
        lab.run(graph=graph(edit, external=lambda _: {"notes": lab.annotations}))
    assert not (lab.runs / "one" / "teacher.onnx").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": {"x": "student/weights"}}, "wants student/weights as x, which no stage before it makes"),
        ({"name": "data"}, "two stages are named data"),
        ({"outputs": {"model": "../model"}}, "../model is not a plain file name"),
        ({"publish": {"model": "teacher.bin"}}, "publishes teacher.bin, a name that is taken"),
        ({"publish": {"model": "manifest.json"}}, "a name that is taken"),
        ({"publish": {"engine": "x"}}, "publishes engine, which it does not make"),
    ],
)
def test_an_impossible_graph_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    lab = Lab(tmp_path)
    data, teacher, export = lab.graph()
    with pytest.raises(StageError, match=message):
        lab.run(graph=(data, teacher, dataclasses.replace(export, **changes)))


def test_a_missing_external_file_is_the_configurations_fault(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.annotations.unlink()
    with pytest.raises(ConfigError, match=r"stage data reads data.annotations, and there is no .*annotations.txt"):
        lab.run()


def test_failed_gates_fail_the_run_after_its_end_and_again_when_reused(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.failed_gates = ["AP 3.0 is below 5.0.", "p50 is above 9 ms"]
    for ran in (["data", "teacher", "export"], []):
        with pytest.raises(GateFailed, match=r"2 gates failed: AP 3.0 is below 5.0; p50 is above 9 ms\. "):
            lab.run()
        assert lab.ran == ran
    assert (lab.runs / "one" / "teacher.onnx").exists()


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is damaged"), ('{"schema": 1}', "has schema 1"), ('{"schema": 2}', "is damaged")]
)
def test_an_unreadable_manifest_is_named(tmp_path: Path, text: str, message: str) -> None:
    lab = Lab(tmp_path)
    lab.run()
    (lab.runs / "one" / "manifest.json").write_text(text)
    with pytest.raises(StoreError, match=rf"one/manifest.json {message}"):
        lab.run()
    (lab.runs / "one" / "manifest.json").unlink()
    lab.run()
    assert lab.ran == []


def test_a_file_in_the_place_of_the_run_folder_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.runs.mkdir()
    (lab.runs / "one").write_text("mine")
    with pytest.raises(StoreError, match="runs/one is a file"):
        lab.run()
    assert (lab.runs / "one").read_text() == "mine"


def test_a_lost_store_is_made_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    shutil.rmtree(lab.runs / ".store")
    assert lab.plan()["data"].reasons == ("its stored outputs are gone",)
    lab.run()
    assert lab.ran == ["data", "teacher", "export"]


def test_the_context_gives_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Lab, "runs", Path("runs"))
    seen: list[Context] = []
    lab.hooks["export"] = seen.append
    lab.run()
    context = seen[0]
    assert context.inputs["weights"].is_absolute()
    assert context.outputs["model"].is_absolute()
    assert context.scratch.is_absolute()
    assert context.run_dir == tmp_path / "runs" / "one"
    assert context.hash_file(lab.annotations) == hashlib.sha256(b"boxes").hexdigest()
    assert context.config.name == "one"


def test_an_optional_output_may_be_missing_and_its_copy_goes_with_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    def engine(context: Context) -> Metrics:
        if "plan" in context.inputs["model"].read_text():
            context.outputs["plan"].write_text("plan")
        context.outputs["report"].write_text("report")
        return {}

    stage = Stage(
        name="engine",
        inputs={"model": "export/model"},
        outputs={"plan": "student.plan", "report": "engines.json"},
        reads=(),
        version=1,
        run=engine,
        publish={"plan": "student.plan", "report": "engines.json"},
        optional=frozenset({"plan"}),
    )
    graph = (*lab.graph(), stage)
    lab.values["export"]["for"] = "plan"
    lab.run(graph=graph)
    assert (lab.runs / "one" / "student.plan").exists()
    lab.values["export"]["for"] = "nothing"
    manifest = lab.run(graph=graph)
    assert list(manifest.stages["engine"].entry.outputs) == ["report"]
    assert not (lab.runs / "one" / "student.plan").exists(), "a plan of another model must not stay"
    assert (lab.runs / "one" / "engines.json").exists()
    lab.run(graph=graph)
    assert lab.ran == []
