"""The finished part of a run, for whoever takes it on from there: of one piece, and as it was written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.hashing import Hasher
from pipeline.loading import load_config
from pipeline.manifest import Manifest
from pipeline.plan import select
from pipeline.stage import Stage


@dataclass(frozen=True)
class FinishedRun:
    """config: as the run was made. outputs: "stage/label" -> where it lies in the store. hashes: the same -> its content."""

    config: Config
    outputs: Mapping[str, Path]
    hashes: Mapping[str, str]

    def verified(self, source: str) -> Path:
        """An output that is as its stage wrote it; a file is read whole for that. Raises StoreError for one that is not."""
        path = self.outputs[source]
        stage, _, _ = source.partition("/")
        try:
            intact = Hasher(Path(os.devnull)).either(path) == self.hashes[source]
        except FileNotFoundError:
            intact = False
        if not intact:
            raise StoreError(
                f"{path} is missing or not what the stage {stage} wrote; give the run's command again (`frs-pipeline run`), "
                "which makes it anew."
            )
        return path


def finished_run(folder: Path, graph: Callable[[Config], Sequence[Stage]], until: str) -> FinishedRun:
    """What the stages up to `until` made, by the manifest. Writes nothing, and asks nothing of the environment.

    Raises StoreError where a stage has not run, or has run for another configuration or on other inputs than the run has now.
    """
    try:
        config = load_config(folder / "config.yaml")
    except ConfigError as error:
        raise StoreError(
            f"{error}\n  {folder} was made by another version, or edited; give the run's command again."
        ) from None
    manifest = Manifest.load(folder)
    records = manifest.stages if manifest else {}
    outputs: dict[str, Path] = {}
    hashes: dict[str, str] = {}
    for stage in select(graph(config), until, ()):
        record = records.get(stage.name)
        if record is None or not _current(stage, config, hashes, record.entry.components):
            what = "has not run"
            if record is not None:
                what = "was made by another version, or for other settings or inputs than the run has now"
            raise StoreError(
                f"{folder}: the stage {stage.name} {what}; bring the run up to date first: `frs-pipeline run` with its "
                f"configuration (--until {until} is enough)."
            )
        for label, artifact in record.entry.outputs.items():
            outputs[f"{stage.name}/{label}"] = record.entry.path(label)
            hashes[f"{stage.name}/{label}"] = artifact.sha256
    return FinishedRun(config, outputs, hashes)


def _current(stage: Stage, config: Config, hashes: Mapping[str, str], made_of: Mapping[str, object]) -> bool:
    inputs = {label: hashes[source] for label, source in stage.inputs.items() if source in hashes}
    settings = {key: config.section(key) for key in stage.reads}
    return made_of["version"] == stage.version and made_of["inputs"] == inputs and made_of["config"] == settings
