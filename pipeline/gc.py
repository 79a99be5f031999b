"""Deletes from the store what no manifest names: entries, attempts that nobody will continue, damaged leftovers."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import Busy
from pipeline.files import clear_temporary, locked, tree_bytes
from pipeline.manifest import Manifest
from pipeline.store import Store


@dataclass
class Collected:
    """What was deleted or would be (path relative to the runs folder -> bytes), and what a process is at work on."""

    deleted: dict[str, int] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(self.deleted.values())


def collect(runs_dir: Path, *, dry_run: bool = False) -> Collected:
    """Delete the unnamed. Raises StoreError for a manifest that cannot be read: what it names is not known then."""
    store = Store(runs_dir.absolute())
    collected = Collected()
    if not store.root.is_dir():
        return collected
    with store.collecting():
        named = _named(store.runs_dir)
        for stage in sorted(path for path in store.root.iterdir() if path.is_dir()):
            fingerprints: dict[str, list[Path]] = {}
            for path in sorted(stage.iterdir()):
                fingerprints.setdefault(path.name.partition(".")[0], []).append(path)
            for fingerprint, paths in fingerprints.items():
                lock = stage / f"{fingerprint}.lock"
                loose = [path for path in paths if path.is_dir() and str(path.relative_to(store.runs_dir)) not in named]
                loose += [scratch for path in paths if (scratch := _stray_scratch(path)) and path not in loose]
                try:
                    with locked(lock, busy=_refuse):
                        _delete(loose, store.runs_dir, collected, dry_run=dry_run)
                        if not dry_run and not any(path.is_dir() for path in paths):
                            lock.unlink()
                except Busy:
                    collected.busy += [str(path.relative_to(store.runs_dir)) for path in loose]
        if not dry_run:
            clear_temporary(store.root)
            store.hasher.forget_missing()
    return collected


def _named(runs_dir: Path) -> set[str]:
    named: set[str] = set()
    for folder in runs_dir.iterdir():
        manifest = Manifest.load(folder) if folder.is_dir() and not folder.name.startswith(".") else None
        if manifest is not None:
            named |= {record.path for record in manifest.stages.values()}
            named |= {manifest.running} if manifest.running else set()
    return named


def _stray_scratch(folder: Path) -> Path | None:
    """The scratch of a finished entry, where a kill came between its renaming and its tidying."""
    scratch = folder / "scratch"
    return scratch if scratch.is_dir() and folder.suffix != ".partial" else None


def _delete(folders: Iterable[Path], runs_dir: Path, collected: Collected, *, dry_run: bool) -> None:
    for folder in folders:
        collected.deleted[str(folder.relative_to(runs_dir))] = tree_bytes(folder)
        if not dry_run:
            (folder / "entry.json").unlink(missing_ok=True)  # first: half a deletion must not look like an entry
            shutil.rmtree(folder)


def _refuse(_: int | None) -> None:
    raise Busy("another process is at this fingerprint")
