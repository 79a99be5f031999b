"""One row of the study: a training by the pipeline's own stages, scored on a split, as a line of JSON.

The line holds what is needed to repeat it: the configuration and its overrides, the hashes of the annotations, of the
teacher and of the trained weights, the commit, the versions and the machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.study_data import StudyData
from benchmarks.study_plan import TEACHER, Method
from frs.data import evaluation_batches
from frs.detectors import load_detector
from frs.edge.files import sha256_of as sha256
from frs.edge.machine import cpu_model, package_versions
from frs.evaluation import Accuracy, evaluate, predict_dataset
from frs.evaluation import Row as Prediction
from frs.export.torch_predictor import TorchPredictor
from pipeline import runner
from pipeline.config import Config
from pipeline.console import Console
from pipeline.errors import StageError
from pipeline.hashing import sha256_of as hash_of
from pipeline.loading import load_config
from pipeline.manifest import Manifest, commit
from pipeline.store import Entry
from stages import graph

POINTS = 8
"""Of a training's curve of AP on `val`."""
SECTIONS = {"teacher": ("teacher",), "control": ("student",), "student": ("teacher", "student", "distill")}
"""What of the configuration a model depends on, beside `input` and `seed`."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A training: `method` on `dataset` from `seed`; epochs: in place of the method's."""

    dataset: StudyData
    method: Method
    seed: int
    epochs: int | None = None

    @property
    def name(self) -> str:
        """Of its run."""
        return f"{self.dataset.name}.{self.method.name}.{self.seed}"

    @property
    def overrides(self) -> tuple[str, ...]:
        """What the row differs in from the configuration: what `--set` takes."""
        epochs = self.epochs
        if epochs is None and self.method.times != 1:
            epochs = (
                self.method.times * load_config(self.dataset.configuration, self.method.overrides).student.train.epochs
            )
        given = () if epochs is None else (f"student.train.epochs={epochs}",)
        return (f"seed={self.seed}", *self.method.overrides, *given)

    def config(self, teacher: Path | None = None) -> Config:
        """teacher: the trained one, where it is wanted."""
        data, section = self.dataset, "teacher" if self.method.stage == "teacher" else "student"
        parts = [
            f"{name}: {{annotations: {split.annotations}, images: {split.images}}}"
            for name, split in (("train", data.train), ("val", data.val))
        ]
        sets = [f"name={self.name}", f"data={{source: coco, {', '.join(parts)}}}", *self.overrides]
        if teacher is not None:
            sets.append(f"teacher.checkpoint={teacher}")
        plain = load_config(data.configuration, sets)
        every = max(1, getattr(plain, section).train.epochs // POINTS)
        return load_config(data.configuration, [*sets, f"{section}.train.validate_every={every}"])

    def identity(self, split: str) -> tuple[str | int, ...]:
        """Of its line for a split: what is equal need not be made again."""
        return self.dataset.name, self.method.name, self.seed, split, self.settings

    @cached_property
    def settings(self) -> str:
        """A hash of all that decides what is trained, but for the code and the machine."""
        config = self.config()
        read = ("input", "seed", "runtime", *SECTIONS[self.method.stage])
        data = [sha256(split.annotations) for split in (self.dataset.train, self.dataset.val)]
        return hash_of({"data": data, **{key: config.section(key) for key in read}})


def identity(row: Row) -> tuple[str | int, ...]:
    """As `Job.identity`."""
    return row["dataset"], row["method"], row["seed"], row["split"], row["settings"]


def make_rows(job: Job, runs: Path, splits: Sequence[str]) -> list[Row]:
    """Train what is not trained yet, which may go on from an interrupted attempt, and score it."""
    entry, teacher = trained(job, runs)
    history = json.loads(entry.path("history").read_text(encoding="utf-8"))
    common: Row = {
        "dataset": job.dataset.name,
        "method": job.method.name,
        "seed": job.seed,
        "configuration": job.dataset.configuration.name,
        "overrides": list(job.overrides),
        "settings": job.settings,
        "epochs": len(history),
        "steps": entry.metrics["steps"],
        "seconds": round(sum(epoch["seconds"] for epoch in history), 1),
        "params": entry.metrics["params"],
        "curve": [[epoch["epoch"] + 1, epoch["AP"]] for epoch in history if epoch["AP"] is not None],
        "terms": history[-1]["terms"],
        "weights_in_force": history[-1]["figures"],
        "weights": sha256(entry.path("weights")),
        "teacher": None if teacher is None else sha256(teacher),
        "annotations": {name: sha256(job.dataset.split(name).annotations) for name in ("train", *splits)},
        "commit": commit(),
        "versions": package_versions(("torch", "torchvision", "timm", "pycocotools")),
        "machine": cpu_model(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return [{**common, "split": split, **_score(job, entry, split).to_json()} for split in splits]


def trained(job: Job, runs: Path) -> tuple[Entry, Path | None]:
    """What came of the training, and its teacher's weights. A student's teacher must be trained already: two students that
    begin at once would both want to bring it up to date."""
    teacher = None
    if job.method.stage == "student":
        taught = Manifest.load(runs / Job(job.dataset, TEACHER, 0).name)
        if taught is None:
            raise StageError(f"{job.name} has no teacher yet; train it first, as `run_study` does.")
        teacher = taught.stages["teacher"].entry.path("weights")
    config = job.config(teacher)
    wanted = ("data", job.method.stage) if teacher is None else ("data", "teacher", job.method.stage)
    stages = [stage for stage in graph(config) if stage.name in wanted]
    runs.mkdir(parents=True, exist_ok=True)
    with (runs / f"{job.name}.log").open("a", encoding="utf-8") as log:
        return runner.run(config, stages, runs, console=Console(log)).stages[job.method.stage].entry, teacher


def _score(job: Job, entry: Entry, split: str) -> Accuracy:
    return evaluate(job.dataset.split(split).annotations, predict(job, entry.path("weights"), split))


def predict(job: Job, weights: Path, split: str) -> list[Prediction]:
    """What the job's model finds in a split, with the reference decode, as the validation during the training."""
    config, chosen = job.config(), job.dataset.split(split)
    predictor = TorchPredictor(load_detector(weights), config.input.height, config.input.width)
    torch.set_num_threads(config.runtime.threads or 1)
    batches = evaluation_batches(chosen.read(), config.input.height, config.input.width, config.validation.batch)
    return predict_dataset(predictor, batches)
