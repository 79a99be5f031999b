"""The store of finished work: `.store/<stage>/<fingerprint>/`, shared by all runs under one folder.

    <fingerprint>/            an entry: entry.json and outputs/; neither is ever changed again
    <fingerprint>.2/, .3/     further generations of the same work: forced, or made because the one before is damaged
    <fingerprint>.partial/    an attempt: outputs/ and scratch/, the latter kept through a kill; renamed once when whole
    <fingerprint>.lock        held by the one process that works at this fingerprint

A fingerprint is the sha256 of the components that a stage's result depends on, as canonical JSON.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import StageError, StoreError
from pipeline.files import clear_temporary, locked, sync, sync_tree, to_json_text, tree_bytes, write_atomic
from pipeline.hashing import Hasher, sealed, sha256_of, unsealed
from pipeline.stage import Stage

_SCHEMA = 2
_FORCED = "forced"
_ENTRY = re.compile(r"([0-9a-f]{64})(?:\.(\d+))?")

Components = dict[str, Any]
"""What is hashed to a fingerprint: stage, version, config, inputs, files, facts."""


@dataclass(frozen=True)
class Artifact:
    """One output: its name in the entry, the hash of its content, its size."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Entry:
    """A finished piece of work and all that is known of how it came about.

    started: ISO 8601, UTC. duration: in seconds, of the attempt that finished. continued: it was not the first one.
    """

    folder: Path
    stage: str
    fingerprint: str
    components: Components
    outputs: dict[str, Artifact]
    metrics: dict[str, Any]
    started: str
    duration: float
    continued: bool
    versions: dict[str, str]
    commit: str | None
    host: str

    def path(self, label: str) -> Path:
        """Where an output lies."""
        return self.folder / "outputs" / self.outputs[label].file

    def to_json(self) -> dict[str, Any]:
        document = asdict(self)
        del document["folder"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], folder: Path) -> Entry:
        """Raises KeyError, TypeError or AttributeError for a document that is not one."""
        fields = {name: document[name] for name in cls.__dataclass_fields__ if name not in ("folder", "outputs")}
        outputs = {label: Artifact(**artifact) for label, artifact in document["outputs"].items()}
        return cls(folder=folder, outputs=outputs, **fields)


@dataclass(frozen=True)
class Attempt:
    """The partial folder that a stage fills."""

    folder: Path
    continued: bool

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"


@dataclass(frozen=True)
class Found:
    """What a look-up gave: an intact entry, or what is wrong with the newest one (nothing: there is none)."""

    entry: Entry | None
    damage: tuple[str, ...] = ()


class Store:
    """The store under one runs folder."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.root = runs_dir / ".store"
        self.hasher = Hasher(self.root / ".hashes.json")

    def in_use(self) -> AbstractContextManager[None]:
        """Held from finding or making an entry until a manifest names it, so that the collector cannot come between."""
        return locked(self.root / ".lock", shared=True, busy=lambda _: None)

    def collecting(self) -> AbstractContextManager[None]:
        """Held by the collector."""
        return locked(self.root / ".lock", busy=lambda _: None)

    def writing(self, stage: str, fingerprint: str, busy: Callable[[int | None], None]) -> AbstractContextManager[None]:
        """Held by the one writer of a fingerprint; `busy` as in `files.locked`."""
        return locked(self.root / stage / f"{fingerprint}.lock", busy=busy)

    def look_up(self, stage: Stage, fingerprint: str, known: Entry | None = None) -> Found:
        """The generation of `known` if it is intact, else the newest intact one.

        known: an entry as a manifest remembers it; it stands in for an entry.json that is damaged.
        """
        generations = [folder for _, folder in self._generations(stage.name, fingerprint)]
        if known is not None:
            generations.sort(key=lambda folder: folder == known.folder, reverse=True)
        damage: tuple[str, ...] = ()
        for folder in generations:
            remembered = known if known is not None and known.folder == folder else None
            entry, faults = self._read(folder, stage, fingerprint, remembered)
            if entry is not None:
                return Found(entry)
            damage = damage or faults
        return Found(None, damage)

    def newest(self, stage: str) -> Entry | None:
        """The entry of a stage that was started last, whatever its fingerprint; its outputs are not verified."""
        entries = [self._entry(folder) for _, _, folder in self._entries(stage)]
        return max((entry for entry in entries if entry is not None), key=lambda e: e.started, default=None)

    def partial(self, stage: str, fingerprint: str) -> Path:
        return self._folder(stage) / f"{fingerprint}.partial"

    def interrupted(self, stage: str, fingerprint: str, *, forced: bool) -> bool:
        """Whether an earlier attempt would be continued; a forced one continues only what was forced too."""
        partial = self.partial(stage, fingerprint)
        return partial.is_dir() and (not forced or (partial / _FORCED).exists())

    def begin(self, stage: str, fingerprint: str, *, forced: bool) -> Attempt:
        """Open the partial folder: an earlier attempt's scratch is kept, its outputs, perhaps half written, are not."""
        continued = self.interrupted(stage, fingerprint, forced=forced)
        attempt = Attempt(self.partial(stage, fingerprint), continued)
        stale = attempt.outputs if continued else attempt.folder
        if stale.is_dir():
            shutil.rmtree(stale)
        attempt.outputs.mkdir(parents=True, exist_ok=True)
        attempt.scratch.mkdir(exist_ok=True)
        clear_temporary(attempt.folder)
        if forced:
            (attempt.folder / _FORCED).touch()
        return attempt

    def collect(self, stage: Stage, attempt: Attempt) -> dict[str, Artifact]:
        """Hash what the stage wrote. Raises StageError for an output that is missing or that was not promised."""
        made = {
            label: name
            for label, name in stage.outputs.items()
            if label not in stage.optional or (attempt.outputs / name).exists()
        }
        for label, name in made.items():
            path = attempt.outputs / name
            if path.is_symlink() or not path.exists():
                raise StageError(
                    f"stage {stage.name} ended without its output {label} ({name}); it must write it as a plain file "
                    "or folder."
                )
        for path in sorted(attempt.outputs.iterdir()):
            if path.name not in stage.outputs.values():
                raise StageError(
                    f"stage {stage.name} wrote {path.name}, which it does not promise; name it in the stage's outputs, "
                    "or write it to its scratch folder."
                )
        return {
            label: Artifact(name, self.hasher.either(attempt.outputs / name), tree_bytes(attempt.outputs / name))
            for label, name in made.items()
        }

    def commit(self, attempt: Attempt, entry: Entry) -> Entry:
        """Make a whole attempt an entry: the next generation of its fingerprint. Durable when this returns.

        The scratch folder goes last: until the rename a kill would still need the checkpoints in it.
        """
        (attempt.folder / _FORCED).unlink(missing_ok=True)
        write_atomic(attempt.folder / "entry.json", _text(entry))
        sync_tree(attempt.folder)
        taken = [number for number, _ in self._generations(entry.stage, entry.fingerprint)]
        number = max(taken, default=0) + 1
        folder = self._folder(entry.stage) / (entry.fingerprint + (f".{number}" if number > 1 else ""))
        attempt.folder.rename(folder)
        sync(folder.parent)
        shutil.rmtree(folder / "scratch")
        return replace(entry, folder=folder)

    def mend(self, entry: Entry) -> None:
        """Write an intact entry's entry.json again, if it is damaged."""
        write_atomic(entry.folder / "entry.json", _text(entry))

    def _folder(self, stage: str) -> Path:
        return self.root / stage

    def _generations(self, stage: str, fingerprint: str) -> list[tuple[int, Path]]:
        """(number, folder), newest first."""
        return sorted(((n, folder) for work, n, folder in self._entries(stage) if work == fingerprint), reverse=True)

    def _entries(self, stage: str) -> Iterator[tuple[str, int, Path]]:
        """(fingerprint, generation, folder) of all that a stage has in the store."""
        folder = self._folder(stage)
        for path in folder.iterdir() if folder.is_dir() else ():
            if (name := _ENTRY.fullmatch(path.name)) is not None:
                yield name[1], int(name[2] or 1), path

    def _entry(self, folder: Path) -> Entry | None:
        try:
            document = unsealed(json.loads((folder / "entry.json").read_text(encoding="utf-8")))
            return Entry.from_json(document, folder) if document["schema"] == _SCHEMA else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _read(
        self, folder: Path, stage: Stage, fingerprint: str, remembered: Entry | None
    ) -> tuple[Entry | None, tuple[str, ...]]:
        entry = self._entry(folder) or remembered
        if entry is None or sha256_of(entry.components) != fingerprint:
            return None, ("entry.json is damaged",)
        faults: list[str] = []
        for label, name in stage.outputs.items():
            artifact = entry.outputs.get(label)
            path = folder / "outputs" / name
            if artifact is None and label in stage.optional:
                continue
            if artifact is None or artifact.file != name or not path.exists():
                faults.append(f"output {label} is missing")
            elif not self._is_intact(path, artifact):
                faults.append(f"output {label} is damaged")
        return (None, tuple(faults)) if faults else (entry, ())

    def _is_intact(self, path: Path, artifact: Artifact) -> bool:
        try:
            return self.hasher.either(path) == artifact.sha256
        except StoreError:  # something else than files lies there
            return False
        except OSError as error:
            if error.errno == errno.EIO:  # the disk cannot read it any more
                return False
            raise


def _text(entry: Entry) -> str:
    return to_json_text(sealed({"schema": _SCHEMA, **entry.to_json()}))
