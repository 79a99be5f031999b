"""The steps of a device run: engines, detections, times. One that fails is told of, and the others go on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frs.edge.bundle import Bundle, Member
from frs.errors import FrsError
from pipeline.deployment import EngineConfig, ProfileConfig
from pipeline.stage import Progress
from stages.artifacts import RUNS_HERE, SUFFIXES, OnnxFile
from stages.device.work import Work
from stages.report.summary import number
from stages.report.tables import RUNTIMES

if TYPE_CHECKING:
    from frs.edge.measured import Artifact
    from frs.evaluation import Row

_PROBE_RUNS = 20


@dataclass
class Measured:
    """engines, profiles: rows of the report. rows, accuracy: artifact -> COCO's result rows, and their AP. failures: artifact
    -> why it was not measured; notes: all that is to tell."""

    engines: list[dict[str, Any]] = field(default_factory=list)
    profiles: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[Artifact, list[Row]] = field(default_factory=dict)
    accuracy: dict[Artifact, dict[str, Any]] = field(default_factory=dict)
    failures: dict[Artifact, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Measurement:
    """What this machine makes of a bundle, step by step.

    facts: what of the machine a step's result depends on: another machine or runtime does every step again.
    """

    def __init__(self, work: Work, facts: Mapping[str, Any], progress: Progress) -> None:
        self.work = work
        self.facts = facts
        self.progress = progress
        self.found = Measured()
        self.files = sorted(work.bundle.of_kind("onnx"), key=_order)

    def build_engines(self, config: EngineConfig) -> None:
        """A plan of every file that is meant for TensorRT, by the library that is here."""
        wanted = [
            member for member in self.files if OnnxFile(str(member.model), str(member.precision), "").for_tensorrt
        ]
        for done, member in enumerate(wanted):
            plan = self.plan(member)
            self.progress.update(done, len(wanted), build=plan.name)
            row = self.work.step(
                f"engine-{plan.stem}",
                {**self.facts, **config.model_dump(mode="json")},
                partial(self._build, member, plan, config),
                partial(_is_built, plan),
            )
            if row["proven"] is None:
                self.note(f"No engines were built: {row['message']}")
                return
            self.found.engines.append(row)
            self.progress.log(f"{plan.name}: {row['proven']}" + (f" ({row['message']})" if row["message"] else ""))
            if row["proven"] == "failed":
                self._failed(self._artifact(member, "tensorrt"), f"the engine was not built: {row['message']}")
        if self.found.engines and all(row["proven"] == "planned" for row in self.found.engines):
            self.note("The engines were built, and nothing here can run them: they were not scored or timed.")

    def _build(self, member: Member, plan: Path, config: EngineConfig) -> dict[str, Any]:
        from frs.export.engine import build_engine

        plan.parent.mkdir(exist_ok=True)
        timings = self.work.folder / "timings"
        timings.mkdir(exist_ok=True)
        report = build_engine(
            self.work.bundle.path(member),
            plan,
            properties=member.properties,
            workspace_mb=config.workspace_mb,
            timeout_s=config.timeout_s,
            batches=config.batches,
            timings=timings,
        )
        return {"model": member.model, "precision": member.precision, **asdict(report)}

    def score(self, runtimes: Mapping[str, bool]) -> None:
        """The detections of everything that runs here, on all bundled images. runtimes: which are there."""
        from frs.evaluation import evaluate
        from stages.device.score import score

        total = sum(member.kind == "image" for member in self.work.bundle.members)
        for artifact in self._candidates(runtimes):
            name = f"{artifact.path.name} in {RUNTIMES[artifact.runtime]}"

            try:
                rows = self.work.step(
                    f"score-{artifact.path.name}",
                    {**self.facts, "file": _sha256(artifact.path)},
                    partial(score, artifact.path, self.work.bundle.folder, partial(self._told, name, total)),
                )
                scored = evaluate(self.work.bundle.annotations, rows)
            except FrsError as error:
                self._failed(artifact, f"not scored: {error}")
                continue
            self.found.rows[artifact], self.found.accuracy[artifact] = rows, scored.to_json()
            self.progress.log(f"{name}: AP {number(scored.AP)} on {total} images")
        for row in self.found.engines:
            if any(_same(row, artifact) for artifact in self.found.rows if artifact.runtime == "tensorrt"):
                row["proven"] = "executed"

    def profile(self, config: ProfileConfig, images: list[Path]) -> None:
        """The times of everything that was scored, in turn. One that cannot be timed is left out of the turn."""
        try:
            self._time(list(self.found.rows), config, images)
        except FrsError:  # whose fault it was, each tells alone
            able = [artifact for artifact in self.found.rows if self._can_be_timed(artifact, config, images)]
            try:
                self._time(able, config, images)
            except FrsError as error:
                for artifact in able:
                    self._failed(artifact, f"not timed: {error}")

    def _time(self, artifacts: list[Artifact], config: ProfileConfig, images: list[Path]) -> None:
        if artifacts:
            facts = {**self.facts, **config.model_dump(mode="json"), "files": [_sha256(a.path) for a in artifacts]}
            do = partial(self._profile, artifacts, config, images)
            self.found.profiles = self.work.step("profile", facts, do)

    def _profile(self, artifacts: list[Artifact], config: ProfileConfig, images: list[Path]) -> list[dict[str, Any]]:
        from frs.edge.latency import profile_artifacts

        return profile_artifacts(
            artifacts,
            images[: config.images],
            runs=config.runs,
            seconds=config.seconds,
            threads=config.threads,
            batches=config.batches,
            progress=lambda done, total: self.progress.update(done, total, time=f"{len(artifacts)} files in turn"),
        )

    def _can_be_timed(self, artifact: Artifact, config: ProfileConfig, images: list[Path]) -> bool:
        from frs.edge.latency import profile_artifacts

        try:
            profile_artifacts([artifact], images[:1], runs=_PROBE_RUNS, seconds=0, batches=config.batches)
        except FrsError as error:
            self._failed(artifact, f"not timed: {error}")
            return False
        return True

    def _told(self, name: str, total: int, done: int) -> None:
        self.progress.update(done, total, score=name, images=f"{done}/{total}")

    def plan(self, member: Member) -> Path:
        return self.work.engines / Path(member.path).with_suffix(".plan").name

    def _candidates(self, runtimes: Mapping[str, bool]) -> Iterator[Artifact]:
        if runtimes["onnxruntime"]:
            for member in self.files:
                yield self._artifact(member, "onnxruntime")
        for member in self.files:
            artifact = self._artifact(member, "tensorrt")
            if any(_same(row, artifact) and row["proven"] in RUNS_HERE for row in self.found.engines):
                yield artifact

    def _artifact(self, member: Member, runtime: str) -> Artifact:
        from frs.edge.latency import Artifact

        path = self.plan(member) if runtime == "tensorrt" else self.work.bundle.path(member)
        return Artifact(str(member.model), str(member.precision), runtime, path)

    def _failed(self, artifact: Artifact, why: str) -> None:
        self.found.failures[artifact] = why
        self.note(f"{artifact.model} {artifact.precision} in {RUNTIMES[artifact.runtime]}: {why}")

    def note(self, text: str) -> None:
        """Tell it now, and in the report."""
        self.found.notes.append(text)
        self.progress.log(text)


def images_of(bundle: Bundle) -> list[Path]:
    return [bundle.path(member) for member in bundle.of_kind("image")]


def _order(member: Member) -> tuple[bool, int]:
    """The teacher first, then by precision, as everywhere."""
    precisions = list(SUFFIXES)
    known = member.precision in precisions
    return member.model != "teacher", precisions.index(str(member.precision)) if known else len(precisions)


def _same(row: Mapping[str, Any], artifact: Artifact) -> bool:
    return (row["model"], row["precision"]) == (artifact.model, artifact.precision)


def _is_built(plan: Path, row: Mapping[str, Any]) -> bool:
    return row["proven"] not in (None, "failed") and _sha256(plan) == row["plan_sha256"]


def _sha256(path: Path) -> str | None:
    from frs.edge.files import sha256_of

    return sha256_of(path) if path.is_file() else None
