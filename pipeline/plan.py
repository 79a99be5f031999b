"""What a run would do and why: the one place where a stage's work is found in the store or declared missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config
from pipeline.errors import ConfigError, StageError
from pipeline.hashing import Hasher, canonical, sha256_of
from pipeline.manifest import FILE, Manifest
from pipeline.stage import Stage
from pipeline.store import Components, Entry, Store

_SHOWN = 6
_ANEW = "another number of epochs is another training: it starts anew"
_CONTINUES = "continues an interrupted attempt"
_RESERVED = (FILE, "config.yaml")


@dataclass(frozen=True)
class Step:
    """What is to be done for one stage.

    reuse: `entry` holds its outputs. run: for these reasons. depends: an input is not made yet, so nobody can say; then
    `fingerprint` is None.
    """

    stage: Stage
    action: Literal["reuse", "run", "depends"]
    reasons: tuple[str, ...]
    components: Components
    fingerprint: str | None = None
    entry: Entry | None = None


def select(graph: Sequence[Stage], until: str | None = None, force: Sequence[str] = ()) -> tuple[Stage, ...]:
    """The stages up to and including `until`.

    Raises ConfigError for an unknown name, StageError for a graph that cannot be.
    """
    _check(graph)
    names = [stage.name for stage in graph]
    for option, name in [("--until", until), *(("--force", name) for name in force)]:
        if name is not None and name not in names:
            raise ConfigError(f"{option} {name}: there is no such stage; the stages are {', '.join(names)}.")
    chosen = tuple(graph) if until is None else tuple(graph[: names.index(until) + 1])
    for name in force:
        if name not in {stage.name for stage in chosen}:
            raise ConfigError(f"--force {name}: this stage comes after --until {until}; leave out one of the two.")
    return chosen


def plan(
    config: Config, graph: Sequence[Stage], runs_dir: Path, *, until: str | None = None, force: Sequence[str] = ()
) -> list[Step]:
    """What `run` with the same arguments would do now. Writes nothing but the memo of hashes."""
    store = Store(runs_dir.absolute())
    manifest = Manifest.load(store.runs_dir / config.name)
    hashes: dict[str, str] = {}
    steps: list[Step] = []
    for stage in select(graph, until, force):
        step = consider(stage, config, hashes, store, manifest, forced=stage.name in force)
        if step.entry is not None:
            hashes |= {f"{stage.name}/{label}": artifact.sha256 for label, artifact in step.entry.outputs.items()}
        steps.append(step)
    store.hasher.save()
    return steps


def consider(
    stage: Stage,
    config: Config,
    hashes: Mapping[str, str],
    store: Store,
    manifest: Manifest | None,
    *,
    forced: bool,
) -> Step:
    """One step of the plan. `hashes` maps "stage/artifact" to the content hash, for all that is made already."""
    parts = components(stage, config, hashes, store.hasher)
    record = manifest.stages.get(stage.name) if manifest else None
    last = record.entry if record else store.newest(stage.name)
    changes = list(differences(stage, last.components, parts)) if last else []
    made = {source.partition("/")[0] for source in hashes}
    waits = dict.fromkeys(name for source in stage.inputs.values() if (name := source.partition("/")[0]) not in made)
    if waits:
        reasons = [f"after {', '.join(waits)}", *changes]
        return Step(stage, "depends", tuple(["forced", *reasons] if forced else reasons), parts)

    fingerprint = sha256_of(parts)
    if forced:
        reasons = ["forced"]
    else:
        found = store.look_up(stage, fingerprint, known=record.entry if record else None)
        if found.entry is not None:
            return Step(stage, "reuse", (), parts, fingerprint, found.entry)
        missing = "never run" if last is None else "its stored outputs are gone"
        reasons = list(found.damage) or changes or [missing]
    if store.interrupted(stage.name, fingerprint, forced=forced):
        reasons.append(_CONTINUES)
    return Step(stage, "run", tuple(reasons), parts, fingerprint)


def components(stage: Stage, config: Config, hashes: Mapping[str, str], hasher: Hasher) -> Components:
    """All that a stage's result depends on, without a path; inputs that are not made are left out.

    Raises ConfigError for an external file that is not there, StageError for facts that JSON cannot hold.
    """
    parts = {
        "stage": stage.name,
        "version": stage.version,
        "config": {key: config.section(key) for key in stage.reads},
        "inputs": {label: hashes[source] for label, source in stage.inputs.items() if source in hashes},
        "files": files(stage, config, hasher),
        "facts": dict(stage.facts(config)),
    }
    try:
        plain: Components = json.loads(canonical(parts))
    except (TypeError, ValueError) as error:
        raise StageError(f"stage {stage.name} depends on something that JSON cannot hold: {error}.") from None
    return plain


def files(stage: Stage, config: Config, hasher: Hasher) -> dict[str, str]:
    """The content hashes of the external files, by label."""
    hashes: dict[str, str] = {}
    for label, path in stage.external(config).items():
        try:
            hashes[label] = hasher.either(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(
                f"stage {stage.name} reads {label}, and there is no {path}; put the file there or correct the "
                "configuration."
            ) from None
    return hashes


def differences(stage: Stage, old: Components, new: Components) -> Iterator[str]:
    """What changed between two sets of components, one sentence each; of many files of one kind only the first few."""
    if old["version"] != new["version"]:
        yield f"the stage's code {old['version']} -> {new['version']}"
    before, after = dict(_leaves(old["config"])), dict(_leaves(new["config"]))
    changed = [key for key in {**after, **before} if before.get(key, _UNSET) != after.get(key, _UNSET)]
    for key in changed:
        yield f"config {key}: {_short(before.get(key, _UNSET))} -> {_short(after.get(key, _UNSET))}"
    if any(key.endswith(".epochs") for key in changed):
        yield _ANEW
    waiting = stage.inputs.keys() - new["inputs"].keys()
    known = {label: digest for label, digest in old["inputs"].items() if label not in waiting}
    yield from _content("input", known, new["inputs"], stage.inputs)
    yield from _content("file", old["files"], new["files"], {})
    for fact in {**old["facts"], **new["facts"]}:
        was, now = old["facts"].get(fact, _UNSET), new["facts"].get(fact, _UNSET)
        if was != now:
            yield f"{fact} {_short(was)} -> {_short(now)}"


class _Unset:
    pass


_UNSET = _Unset()


def _content(kind: str, old: Mapping[str, str], new: Mapping[str, str], names: Mapping[str, str]) -> Iterator[str]:
    sentences = [
        f"{kind} {names.get(label, label)} {'changed' if label in old else 'is new'}"
        for label, digest in new.items()
        if old.get(label) != digest
    ]
    sentences += [f"{kind} {label} is no longer read" for label in old if label not in new]
    yield from sentences[:_SHOWN]
    if len(sentences) > _SHOWN:
        yield f"and {len(sentences) - _SHOWN} more"


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _short(value: Any) -> str:
    if value is _UNSET:
        return "unset"
    text = value if isinstance(value, str) else canonical(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _check(graph: Sequence[Stage]) -> None:
    made: set[str] = set()
    published: set[str] = set()
    for stage in graph:
        if any(source.startswith(f"{stage.name}/") for source in made):
            raise StageError(f"two stages are named {stage.name}.")
        for label, source in stage.inputs.items():
            if source not in made:
                raise StageError(f"stage {stage.name} wants {source} as {label}, which no stage before it makes.")
        for label, name in stage.publish.items():
            if label not in stage.outputs:
                raise StageError(f"stage {stage.name} publishes {label}, which it does not make.")
            if name in published or name in _RESERVED:
                raise StageError(f"stage {stage.name} publishes {name}, a name that is taken.")
            published.add(name)
        for name in (stage.name, *stage.outputs.values(), *stage.publish.values()):
            if Path(name).name != name or name.startswith("."):
                raise StageError(f"stage {stage.name}: {name} is not a plain file name.")
        made |= {f"{stage.name}/{label}" for label in stage.outputs}
