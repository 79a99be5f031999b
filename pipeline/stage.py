"""What a stage is, and what it is given to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import Config

Metrics = dict[str, Any]
"""JSON-ready figures that a stage returns for the manifest."""


class Progress(Protocol):
    """Where a stage says how far it is; the console draws it."""

    def update(self, done: float, total: float, **figures: float | str) -> None:
        """Show `done` of `total` with the figures beside it (loss, AP, ...)."""
        ...

    def log(self, message: str) -> None:
        """Print one line that stays."""
        ...


@dataclass(frozen=True)
class Context:
    """All that a stage may use: there is nothing global.

    `inputs` holds an absolute path for every label in `Stage.inputs`, `outputs` one in the folder being filled
    for every label in `Stage.outputs`. The folder survives a kill: what a stage finds in `scratch` (checkpoints)
    is its own, from an earlier attempt at the very same work, and is deleted when the stage is whole. `command` is what
    the user gave, `commit` the git commit of this package, if it is known: for the report.
    """

    config: Config
    inputs: Mapping[str, Path]
    outputs: Mapping[str, Path]
    scratch: Path
    progress: Progress
    hash_file: Callable[[Path], str]
    run_dir: Path
    command: str
    commit: str | None


def _nothing(_: Config) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Stage:
    """One step of the graph.

    name: also its folder in the store. inputs: label -> "stage/artifact". outputs: label -> file or folder name.
    reads: dotted config keys whose values (without paths) enter the fingerprint. version: raised when the code
    changes what the outputs mean. external: the files outside the store that it reads, by label, hashed by
    content. facts: what of the environment its result depends on. publish: output label -> plain name in the run
    folder, where a copy is put. optional: outputs that may be missing, as this machine cannot make them (an engine)
    or nobody asked for them; a stage that reads one finds it missing in `Context.inputs` too.
    """

    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    reads: tuple[str, ...]
    version: int
    run: Callable[[Context], Metrics]
    external: Callable[[Config], Mapping[str, Path]] = field(default=_nothing)
    facts: Callable[[Config], Mapping[str, Any]] = field(default=_nothing)
    publish: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
