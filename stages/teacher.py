"""teacher: trained here, or taken from a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.published import Published
from pipeline.stage import Context, Metrics, Stage
from stages.common import DATA_INPUTS, dataset, external, training_facts, write_json
from stages.given import fit_teacher, label, load_teacher
from stages.training import (
    TRAINING_OPTIONAL,
    TRAINING_OUTPUTS,
    in_ranks,
    new_detector,
    train_detector,
    training_published,
)

if TYPE_CHECKING:
    from frs.detectors import Detector


def stage() -> Stage:
    return Stage(
        name="teacher",
        inputs=DATA_INPUTS,
        outputs={"weights": "teacher.safetensors", **TRAINING_OUTPUTS},
        reads=("teacher", "input", "seed"),
        version=2,
        run=_run,
        external=external_files,
        facts=training_facts,
        publish={"weights": "teacher.safetensors", **training_published("teacher")},
        optional=TRAINING_OPTIONAL,
    )


def external_files(config: Config) -> Mapping[str, Path]:
    """The checkpoint, and the backbone's weights, where they are files."""
    teacher = config.teacher
    checkpoint = teacher.checkpoint.file if isinstance(teacher.checkpoint, Published) else teacher.checkpoint
    weights = teacher.detector.weights if teacher.detector is not None else None
    return external({"teacher.checkpoint": checkpoint, "teacher.detector.weights": weights})


def _run(context: Context) -> Metrics:
    config = context.config.teacher
    if config.checkpoint is not None:
        return _take(context)
    return in_ranks(context, "teacher", config.train, _train)


def _train(context: Context) -> Metrics:
    from frs.training import DetectionObjective

    config = context.config.teacher
    assert config.detector is not None  # the configuration sees to that
    detector = new_detector(context, config.detector, dataset(context, "val"))
    _, metrics = train_detector(context, detector, config.train, lambda detector, *_: DetectionObjective(detector))
    return metrics


def given_teacher(context: Context) -> tuple[Detector, str]:
    """The checkpoint, if it is a teacher for this data set and this student, and what was changed of it, if anything."""
    config = context.config.teacher
    detector = load_teacher(config, context.progress.log)
    return fit_teacher(config, detector, context.config.student.detector, dataset(context, "val"))


def _take(context: Context) -> Metrics:
    """A file of ours as it is, unless its classes are others; what is published, in our format."""
    from frs.detectors import parameter_count, save_detector

    checkpoint = context.config.teacher.checkpoint
    detector, changed = given_teacher(context)
    if isinstance(checkpoint, Path) and not changed:
        shutil.copyfile(checkpoint, context.outputs["weights"])
    else:
        save_detector(context.outputs["weights"], detector)
    write_json(context.outputs["history"], [])
    context.outputs["metrics"].touch()
    return {
        "params": parameter_count(detector),
        "given": label(checkpoint),
        **({"changed": changed} if changed else {}),
    }
