from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError, GateFailed, StageError, StageFailed, StoreError
from pipeline.manifest import Manifest
from pipeline.stage import Context, Metrics, Stage
from tests.pipeline.lab import Lab


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every file that is not a lock, a manifest or the memo."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith("lock") and path.name not in ("manifest.json", ".hashes.json")
    }


def test_the_first_run_does_all_and_the_second_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    first = lab.run()
    assert lab.ran == ["data", "teacher", "export"]
    assert [record.reused for record in first.stages.values()] == [False] * 3
    files = tree(lab.runs)
    second = lab.run()
    assert lab.ran == []
    assert [record.reused for record in second.stages.values()] == [True] * 3
    assert tree(lab.runs) == files
    assert "nothing to do" in lab.text


def test_the_manifest_tells_where_everything_came_from(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    document = json.loads((lab.runs / "one" / "manifest.json").read_text())
    assert (document["schema"], document["name"], document["running"]) == (2, "one", None)
    assert list(document["stages"]) == ["data", "teacher", "export"]
    teacher = document["stages"]["teacher"]
    table = lab.runs / document["stages"]["data"]["path"] / "outputs" / "table.txt"
    assert teacher["path"] == f".store/teacher/{teacher['fingerprint']}"
    assert teacher["components"] == {
        "stage": "teacher",
        "version": 1,
        "config": {"teacher": {"train": {"epochs": 10, "lr": 0.1}}},
        "inputs": {"table": hashlib.sha256(table.read_bytes()).hexdigest()},
        "files": {},
        "facts": {"torch": "2.13"},
    }
    text = json.dumps(teacher["components"], sort_keys=True, separators=(",", ":"))
    assert teacher["fingerprint"] == hashlib.sha256(text.encode()).hexdigest()
    weights = (lab.runs / teacher["path"] / "outputs" / "weights.bin").read_bytes()
    assert teacher["outputs"]["weights"] == {
        "file": "weights.bin",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
    }
    assert teacher["outputs"]["history"]["bytes"] == len("1 2 3")
    assert teacher["metrics"] == {"AP": 12.5}
    assert teacher["versions"]["frs-pipeline"] == "0.1.0"
    assert {"started", "duration", "commit", "host", "reused", "continued"} <= teacher.keys()
    annotations = hashlib.sha256(lab.annotations.read_bytes()).hexdigest()
    assert document["stages"]["data"]["components"]["files"] == {"data.annotations": annotations}
    loaded = Manifest.load(lab.runs / "one")
    assert loaded is not None
    seal = document.pop("sha256")
    assert loaded.to_json() == document
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert seal == hashlib.sha256(text.encode()).hexdigest()


def change_option(lab: Lab) -> None:
    lab.values["export"]["batch"] = 2


def change_recipe(lab: Lab) -> None:
    lab.values["teacher"]["train"]["lr"] = 0.2


def change_fact(lab: Lab) -> None:
    lab.torch = "2.14"


def change_code(lab: Lab) -> None:
    lab.version = 2


def change_file(lab: Lab) -> None:
    lab.annotations.write_text("other boxes")


def touch_file(lab: Lab) -> None:
    lab.annotations.write_text("boxes")


def pad_file(lab: Lab) -> None:
    lab.annotations.write_text("boxes\n")  # another input, but the data stage strips it


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_option, ["export"]),
        (change_recipe, ["teacher", "export"]),
        (change_fact, ["teacher"]),  # its outputs are the same, so what follows is still valid
        (change_code, ["teacher"]),
        (change_file, ["data", "teacher", "export"]),
        (touch_file, []),
        (pad_file, ["data"]),
    ],
)
def test_a_change_reruns_what_it_reaches(tmp_path: Path, change: Any, expected: list[str]) -> None:
    lab = Lab(tmp_path)
    lab.run()
    change(lab)
    lab.run()
    assert lab.ran == expected
    lab.run()
    assert lab.ran == []


def test_going_back_to_an_earlier_configuration_reuses_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    change_recipe(lab)
    lab.run()
    lab.values["teacher"]["train"]["lr"] = 0.1
    lab.run()
    assert lab.ran == []
    assert "0.1" in (lab.runs / "one" / "teacher.bin").read_text()


def test_runs_share_the_store(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run("one")
    change_option(lab)
    lab.run("two")
    assert lab.ran == ["export"]


def test_a_moved_folder_still_hits(tmp_path: Path) -> None:
    before = Lab(tmp_path / "before")
    before.run()
    (tmp_path / "before").rename(tmp_path / "after")
    after = Lab(tmp_path / "after")
    assert {step.action for step in after.plan().values()} == {"reuse"}
    after.run()
    assert after.ran == []
    entries = (path.read_text() for path in after.runs.rglob("entry.json"))
    assert not any(str(tmp_path) in text for text in entries)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4] ^= 1
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("kept"))
    path.symlink_to("nowhere")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink, replace_by_link])
@pytest.mark.parametrize("output", ["weights.bin", "history/epochs.txt"])
def test_a_damaged_output_is_made_again_beside_the_old(tmp_path: Path, damage: Any, output: str) -> None:
    lab = Lab(tmp_path)
    for name in ("one", "two"):
        lab.run(name)
    entry = lab.entries("teacher")[0]
    damage(entry / "outputs" / output)
    left = tree(entry)
    other = (lab.runs / "two" / "manifest.json").read_text()
    manifest = lab.run("one")
    assert lab.ran == ["teacher"]
    assert "output weights" in lab.text or "output history" in lab.text
    assert tree(entry) == left
    assert (lab.runs / "two" / "manifest.json").read_text() == other
    assert manifest.stages["teacher"].path.endswith(".2")
    assert [path.name for path in lab.entries("teacher")] == [entry.name, f"{entry.name}.2"]
    lab.run("two")
    assert lab.ran == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": 9}', "\x00"])
def test_an_entry_without_its_document_is_not_an_entry_but_for_the_run_that_remembers_it(
    tmp_path: Path, text: str
) -> None:
    lab = Lab(tmp_path)
    lab.run("one")
    document = lab.entries("teacher")[0] / "entry.json"
    whole = document.read_text()
    document.write_text(text)
    lab.run("two")
    assert lab.ran == ["teacher"]
    lab.run("one")
    assert lab.ran == []
    assert document.read_text() == whole


def test_an_entry_under_a_foreign_fingerprint_is_not_a_hit(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    old = lab.entries("teacher")[0]
    change_recipe(lab)
    fingerprint = lab.plan()["teacher"].fingerprint
    assert fingerprint is not None
    old.rename(old.with_name(fingerprint))
    lab.run()
    assert lab.ran == ["teacher", "export"]


def test_force_makes_a_generation_that_other_runs_do_not_get(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run("one")
    lab.run("two")
    lab.hooks["teacher"] = lambda context: lab.values["teacher"].update(note="not deterministic")
    before = lab.entries("teacher")[0]
    left = tree(before)
    forced = lab.run("one", force=["teacher"])
    del lab.values["teacher"]["note"], lab.hooks["teacher"]
    assert lab.ran == ["teacher", "export"]
    assert tree(before) == left
    assert forced.stages["teacher"].path == f".store/teacher/{before.name}.2"
    assert lab.run("one").stages["teacher"].path.endswith(".2")
    assert lab.ran == []
    assert lab.run("two").stages["teacher"].path == f".store/teacher/{before.name}"
    assert lab.ran == []
    assert lab.run("three").stages["teacher"].path.endswith(".2")


def test_results_are_copies(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    copy = lab.runs / "one" / "teacher.onnx"
    right = copy.read_text()
    copy.write_text("edited by hand")
    (lab.runs / "one" / "history" / "epochs.txt").write_text("edited")
    (lab.runs / "one" / "history" / "more.txt").write_text("added")
    lab.run()
    assert lab.ran == []
    assert copy.read_text() == right
    assert [path.name for path in (lab.runs / "one" / "history").iterdir()] == ["epochs.txt"]
    assert (lab.runs / "one" / "history" / "epochs.txt").read_text() == "1 2 3"
    assert sorted(path.name for path in (lab.runs / "one").iterdir()) == [
        ".lock", "config.yaml", "history", "manifest.json", "teacher.bin", "teacher.onnx"
    ]  # fmt: skip


@pytest.mark.parametrize("there", ["folder", "link"])
def test_a_result_replaces_whatever_has_its_name(tmp_path: Path, there: str) -> None:
    lab = Lab(tmp_path)
    target = lab.runs / "one" / "teacher.onnx"
    if there == "folder":
        (target / "sub").mkdir(parents=True)
    else:
        target.parent.mkdir(parents=True)
        target.symlink_to(lab.annotations)
    lab.run()
    assert target.is_file()
    assert not target.is_symlink()
    assert lab.annotations.read_text() == "boxes"


def test_the_configuration_is_written_beside_the_results(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    assert json.loads((lab.runs / "one" / "config.yaml").read_text()) == {"name": "one", **lab.values}


def test_what_a_dropped_stage_published_is_taken_back(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    (lab.runs / "one" / "notes.txt").write_text("mine")
    manifest = lab.run(graph=lab.graph()[:2])
    assert list(manifest.stages) == ["data", "teacher"]
    assert not (lab.runs / "one" / "teacher.onnx").exists()
    assert (lab.runs / "one" / "teacher.bin").exists()
    assert (lab.runs / "one" / "notes.txt").read_text() == "mine"


def test_an_edited_copy_of_a_dropped_stage_stays(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    (lab.runs / "one" / "teacher.onnx").write_text("mine")
    lab.run(graph=lab.graph()[:2])
    assert (lab.runs / "one" / "teacher.onnx").read_text() == "mine"
    assert "was edited" in lab.text


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
