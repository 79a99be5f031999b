from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import StageFailed, StoreError
from pipeline.files import tree_bytes
from pipeline.gc import collect
from pipeline.manifest import Manifest
from pipeline.stage import Context
from pipeline.store import Store
from tests.pipeline.lab import Lab


def names(lab: Lab) -> list[str]:
    return sorted(str(path.relative_to(lab.runs)) for path in lab.runs.glob(".store/*/*") if path.is_dir())


def test_only_what_no_manifest_names_is_deleted(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run("one")
    lab.run("two")
    lab.values["export"]["batch"] = 2
    lab.run("one")  # its old export is still named by two
    lab.values["export"]["batch"] = 3
    lab.run("one")  # its second export is named by none
    expected = {path: path for path in names(lab)}
    for run in ("one", "two"):
        manifest = Manifest.load(lab.runs / run)
        assert manifest is not None
        for record in manifest.stages.values():
            expected.pop(record.path, None)
    assert len(expected) == 1
    unnamed = lab.runs / next(iter(expected))
    size = tree_bytes(unnamed)
    assert size == sum(path.stat().st_size for path in unnamed.rglob("*") if path.is_file())

    before = names(lab)
    would = collect(lab.runs, dry_run=True)
    assert (would.deleted, would.bytes) == ({next(iter(expected)): size}, size)
    assert names(lab) == before
    assert collect(lab.runs).deleted == would.deleted
    assert names(lab) == sorted(set(before) - set(expected))
    assert not unnamed.with_name(f"{unnamed.name}.lock").exists()
    assert collect(lab.runs).deleted == {}
    lab.run("one")
    assert lab.ran == []


def test_damaged_leftovers_go_when_their_run_has_a_new_generation(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    entry = lab.entries("teacher")[0]
    (entry / "outputs" / "weights.bin").write_text("x")
    assert collect(lab.runs).deleted == {}
    lab.run()
    assert list(collect(lab.runs).deleted) == [str(entry.relative_to(lab.runs))]
    lab.run()
    assert lab.ran == []


def test_an_interrupted_attempt_is_kept_until_its_run_goes_another_way(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    def fail(context: Context) -> None:
        (context.scratch / "checkpoint").write_text("epoch 1")
        raise RuntimeError

    lab.hooks["teacher"] = fail
    with pytest.raises(StageFailed):
        lab.run()
    assert collect(lab.runs).deleted == {}
    del lab.hooks["teacher"]
    lab.values["teacher"]["train"]["epochs"] = 3
    lab.run()
    (partial,) = collect(lab.runs).deleted
    assert partial.endswith(".partial")


def test_what_is_locked_is_left(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    (lab.runs / "one" / "manifest.json").unlink()
    store, entry = Store(lab.runs), lab.entries("teacher")[0]
    with store.writing("teacher", entry.name, busy=lambda _: None):
        collected = collect(lab.runs)
    assert collected.busy == [str(entry.relative_to(lab.runs))]
    assert names(lab) == [str(entry.relative_to(lab.runs))]
    assert collect(lab.runs).busy == []
    assert names(lab) == []


def test_scratch_that_a_kill_left_in_an_entry_is_deleted(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    scratch = lab.entries("teacher")[0] / "scratch"
    scratch.mkdir()
    (scratch / "checkpoint").write_text("12345")
    collected = collect(lab.runs)
    assert collected.deleted == {str(scratch.relative_to(lab.runs)): 5}
    lab.run()
    assert lab.ran == []


def test_an_unreadable_manifest_stops_it(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    before = names(lab)
    (lab.runs / "one" / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged"):
        collect(lab.runs)
    assert names(lab) == before


def test_nothing_to_collect(tmp_path: Path) -> None:
    assert collect(tmp_path / "runs").bytes == 0
    assert not (tmp_path / "runs").exists()


def test_a_memo_that_was_half_written_goes(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    left = lab.runs / ".store" / "..hashes.json.12345"
    left.write_text("{")
    collect(lab.runs, dry_run=True)
    assert left.exists()
    collect(lab.runs)
    assert not left.exists()
