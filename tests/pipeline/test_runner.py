from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import Manifest
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
