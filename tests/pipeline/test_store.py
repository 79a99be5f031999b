from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import Busy, StoreError
from pipeline.files import locked, write_atomic
from pipeline.manifest import Manifest
from pipeline.store import Store
from tests.pipeline.lab import Lab


def test_everything_is_on_the_disk_before_the_one_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[tuple[str, Path]] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(descriptor: int) -> None:
        events.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def spy_rename(self: Path, target: Path) -> Path:
        events.append(("rename", self))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    lab = Lab(tmp_path)
    lab.run(until="teacher")
    partial = next(path for kind, path in events if kind == "rename" and path.parent.name == "teacher")
    at = events.index(("rename", partial))
    assert partial.suffix == ".partial"
    (entry,) = lab.entries("teacher")
    written = [entry, *entry.rglob("*")]
    assert len(written) == 6  # the folder, entry.json, outputs/, weights.bin, history/, history/epochs.txt
    synced = {path for kind, path in events[:at] if kind == "sync"}
    missing = [path for path in written if partial / path.relative_to(entry) not in synced]
    assert [path.name for path in missing] in ([], ["entry.json"])
    assert any(path.name.startswith(".entry.json.") for path in synced)  # synced under its temporary name
    assert ("sync", entry.parent) in events[at:]


def test_busy_names_the_holder(tmp_path: Path) -> None:
    def refuse(holder: int | None) -> None:
        raise Busy(f"held by {holder}")

    store = Store(tmp_path)
    with (
        store.writing("teacher", "f" * 64, busy=refuse),
        pytest.raises(Busy, match=f"held by {os.getpid()}$"),
        store.writing("teacher", "f" * 64, busy=refuse),
    ):
        pass
    with store.writing("teacher", "f" * 64, busy=refuse):
        pass


def test_runs_share_the_store_and_the_collector_has_it_alone(tmp_path: Path) -> None:
    def refuse(_: int | None) -> None:
        raise Busy("taken")

    store = Store(tmp_path)
    lock = store.root / ".lock"
    with store.in_use(), store.in_use(), pytest.raises(Busy), locked(lock, busy=refuse):
        pass
    with store.collecting(), pytest.raises(Busy), locked(lock, busy=refuse, shared=True):
        pass


def test_an_atomic_write_leaves_the_old_text_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"


def test_an_equal_text_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomic(path, "é\n")
    before = path.stat()
    write_atomic(path, "é\n")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_no_flipped_bit_in_a_record_is_ever_believed(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run(until="data")
    stage, store = lab.graph()[0], Store(lab.runs)
    (folder,) = lab.entries("data")
    manifest = Manifest.load(lab.runs / "one")
    assert manifest is not None
    for path in (folder / "entry.json", lab.runs / "one" / "manifest.json"):
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
            assert store.look_up(stage, folder.name).entry in (None, manifest.stages["data"].entry)
            with suppress(StoreError):
                assert Manifest.load(lab.runs / "one") == manifest
        path.write_bytes(whole)
    assert store.look_up(stage, folder.name).entry == manifest.stages["data"].entry
