"""Brings a run up to date: stage by stage, reusing what the store holds, doing what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

from pipeline.config import Config
from pipeline.console import Console
from pipeline.environment import image, packages
from pipeline.errors import Busy, GateFailed, StageError, StageFailed, StoreError
from pipeline.files import clear_temporary, locked, sync, sync_tree, write_atomic
from pipeline.hashing import Hasher, canonical
from pipeline.manifest import Manifest, Record, commit, host, versions
from pipeline.plan import Step, consider, files, select
from pipeline.stage import Context, Metrics, Stage
from pipeline.store import Attempt, Entry, Store


def run(
    config: Config,
    graph: Sequence[Stage],
    runs_dir: Path,
    *,
    until: str | None = None,
    force: Sequence[str] = (),
    console: Console,
    command: str = "",
) -> Manifest:
    """Do what is missing of a run, publish its results to `runs_dir/<name>/`, and return its manifest.

    `command` is what the user gave, for the report.
    Raises Busy while another process is at this run, StageFailed when a stage raises (what was finished before stays),
    StageError when one breaks its contract, and GateFailed after the last stage when a stage's metrics name
    `failed_gates`.
    """
    stages = select(graph, until, force)
    work = _Run(config, stages, runs_dir, force, console, command)
    began = time.monotonic()
    with locked(work.folder / ".lock", busy=work.refuse):
        clear_temporary(work.folder)
        write_atomic(work.folder / "config.yaml", config.to_yaml())
        try:
            for number, stage in enumerate(stages, 1):
                work.bring_up_to_date(stage, number)
            if len(stages) == len(graph):
                work.drop_the_rest()
        finally:
            work.store.hasher.save()
    reused = sum(work.manifest.stages[stage.name].reused for stage in stages)
    console.summary(config.name, len(stages), reused, time.monotonic() - began, runs_dir / config.name)
    metrics = [work.manifest.stages[stage.name].entry.metrics for stage in stages]
    failed = [str(gate).rstrip(".") for figures in metrics for gate in figures.get("failed_gates", ())]
    if failed:
        raise GateFailed(
            f"{config.name}: {len(failed)} gate{'s' if len(failed) > 1 else ''} failed: {'; '.join(failed)}. "
            f"Every stage was finished; see {runs_dir / config.name}."
        )
    return work.manifest


class _Run:
    """One call of `run`: where things are, and what is made so far."""

    def __init__(
        self,
        config: Config,
        stages: Sequence[Stage],
        runs_dir: Path,
        force: Sequence[str],
        console: Console,
        command: str,
    ) -> None:
        self.config = config
        self.stages = stages
        self.force = force
        self.console = console
        self.command = command
        self.store = Store(runs_dir.absolute())
        self.folder = self.store.runs_dir / config.name
        self.manifest = Manifest.load(self.folder) or Manifest(config.name)
        self.manifest.image, self.manifest.packages = image(), packages()
        self.made: dict[str, Path] = {}
        self.hashes: dict[str, str] = {}

    def refuse(self, holder: int | None) -> None:
        raise Busy(
            f"run {self.config.name} is under way in {_process(holder)}; wait until it ends, or give this one another "
            "name (--set name=...)."
        )

    def bring_up_to_date(self, stage: Stage, number: int) -> None:
        """Find or do the work of one stage, name it in the manifest, publish it."""
        forced = stage.name in self.force
        step = self._find(stage, forced=forced)
        if step.entry is not None:
            self.console.stage_reused(stage.name, number, len(self.stages))
        else:
            self.console.stage_started(stage.name, number, len(self.stages), step.reasons)
            step = self._make(step, forced=forced)
        assert step.entry is not None
        for label, artifact in step.entry.outputs.items():
            self.made[f"{stage.name}/{label}"] = step.entry.path(label)
            self.hashes[f"{stage.name}/{label}"] = artifact.sha256
        for label, name in published(stage, step.entry).items():
            publish(step.entry.path(label), step.entry.outputs[label].sha256, self.folder / name, self.store.hasher)

    def drop_the_rest(self) -> None:
        """Forget the stages that the graph no longer has, and take back what they published."""
        records = self.manifest.stages
        self.manifest.stages = {stage.name: records.pop(stage.name) for stage in self.stages}
        self.manifest.running = None  # an attempt that this run turned out not to need
        self.manifest.save(self.folder)
        for record in records.values():
            self._take_back(record.published)

    def _find(self, stage: Stage, *, forced: bool) -> Step:
        with self.store.in_use():
            step = consider(stage, self.config, self.hashes, self.store, self.manifest, forced=forced)
            if step.entry is not None:
                self._record(stage, step.entry, reused=True)
        return step

    def _make(self, step: Step, *, forced: bool) -> Step:
        stage, fingerprint = step.stage, step.fingerprint
        assert fingerprint is not None

        def wait(holder: int | None) -> None:
            self.console.log(f"{_process(holder)} is at this very work; waiting for it")

        with self.store.writing(stage.name, fingerprint, busy=wait):
            again = self._find(stage, forced=forced)  # another process may have done it in the meantime
            if again.entry is not None:
                self.console.stage_finished("made by another process")
                return again
            try:
                entry = self._execute(again, forced=forced)
            except BaseException:
                self.console.stage_failed()
                raise
        self.console.stage_finished("done")
        return Step(stage, "run", step.reasons, step.components, fingerprint, entry)

    def _execute(self, step: Step, *, forced: bool) -> Entry:
        stage, fingerprint = step.stage, step.fingerprint
        assert fingerprint is not None
        attempt = self.store.begin(stage.name, fingerprint, forced=forced)
        self.manifest.running = str(attempt.folder.relative_to(self.store.runs_dir))
        self.manifest.save(self.folder)
        started, clock = datetime.now(timezone.utc), time.monotonic()
        metrics = self._call(stage, attempt)
        if files(stage, self.config, self.store.hasher) != step.components["files"]:
            raise StageError(
                f"stage {stage.name}: a file that it reads changed while it ran, so its result belongs to neither "
                "content; run again."
            )
        with self.store.in_use():
            entry = self.store.commit(
                attempt,
                Entry(
                    folder=attempt.folder,
                    stage=stage.name,
                    fingerprint=fingerprint,
                    components=step.components,
                    outputs=self.store.collect(stage, attempt),
                    metrics=metrics,
                    started=started.isoformat(timespec="seconds"),
                    duration=round(time.monotonic() - clock, 3),
                    continued=attempt.continued,
                    versions=versions(),
                    commit=commit(),
                    host=host(),
                ),
            )
            self.manifest.running = None
            self._record(stage, entry, reused=False)
        return entry

    def _call(self, stage: Stage, attempt: Attempt) -> Metrics:
        context = Context(
            config=self.config,
            inputs={label: self.made[source] for label, source in stage.inputs.items() if source in self.made},
            outputs={label: attempt.outputs / name for label, name in stage.outputs.items()},
            scratch=attempt.scratch,
            progress=self.console,
            hash_file=self.store.hasher.file,
            run_dir=self.folder,
            command=self.command,
            commit=commit(),
        )
        try:
            metrics = stage.run(context)
        except Exception as error:
            raise StageFailed(stage.name, error) from error
        try:
            plain: Metrics = json.loads(canonical(metrics))
        except (TypeError, ValueError) as error:
            raise StageError(f"stage {stage.name} returned metrics that JSON cannot hold: {error}.") from None
        return plain

    def _record(self, stage: Stage, entry: Entry, *, reused: bool) -> None:
        if reused:
            self.store.mend(entry)
        taken = {name: entry.outputs[label].sha256 for label, name in published(stage, entry).items()}
        before = self.manifest.stages.get(stage.name)
        path = str(entry.folder.relative_to(self.store.runs_dir))
        self.manifest.stages[stage.name] = Record(entry, path, reused, taken)
        self.manifest.save(self.folder)
        if before is not None:
            self._take_back({name: sha256 for name, sha256 in before.published.items() if name not in taken})

    def _take_back(self, published: Mapping[str, str]) -> None:
        kept = {name for record in self.manifest.stages.values() for name in record.published}
        for name, sha256 in published.items():
            path = self.folder / name
            if name in kept or not os.path.lexists(path):
                continue
            if _hash(path, self.store.hasher) == sha256:
                _remove(path)
            else:
                self.console.log(f"{path} is no longer a result of this run; it was edited, so it stays")


def published(stage: Stage, entry: Entry) -> dict[str, str]:
    """Label -> name in the run folder of what the stage publishes and, where it is optional, made."""
    return {label: name for label, name in stage.publish.items() if label in entry.outputs}


def publish(source: Path, sha256: str, target: Path, hasher: Hasher) -> None:
    """Put a copy of an output at `target`, unless it is there; a file is replaced in one rename, a folder in two."""
    temporary, old = target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
    _remove(temporary)
    _remove(old)
    if _hash(target, hasher) == sha256:
        return
    if source.is_dir():
        shutil.copytree(source, temporary)
        sync_tree(temporary)
    else:
        shutil.copyfile(source, temporary)
        sync(temporary)
    if os.path.lexists(target) and (source.is_dir() or target.is_dir()):
        target.rename(old)
    temporary.replace(target)
    sync(target.parent)
    _remove(old)


def _hash(path: Path, hasher: Hasher) -> str | None:
    try:
        return None if path.is_symlink() else hasher.either(path)
    except (FileNotFoundError, StoreError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _process(holder: int | None) -> str:
    return "another process" if holder is None else f"process {holder}"
