"""teacher: trained here, or taken from a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.common import DATA_INPUTS, dataset, external, training_facts, write_json
from stages.training import new_detector, train_detector


def stage() -> Stage:
    return Stage(
        name="teacher",
        inputs=DATA_INPUTS,
        outputs={"weights": "teacher.safetensors", "history": "history.json"},
        reads=("teacher", "input", "seed"),
        version=1,
        run=_run,
        external=_external,
        facts=training_facts,
        publish={"weights": "teacher.safetensors"},
    )


def _external(config: Config) -> Mapping[str, Path]:
    teacher = config.teacher
    return external({"teacher.checkpoint": teacher.checkpoint, "teacher.detector.weights": teacher.detector.weights})


def _run(context: Context) -> Metrics:
    from frs.training import DetectionObjective

    config = context.config.teacher
    if config.checkpoint is not None:
        return _given(context, config.checkpoint)
    detector = new_detector(context, config.detector, dataset(context, "val"))
    _, metrics = train_detector(context, detector, config.train, lambda detector, _: DetectionObjective(detector))
    return metrics


def _given(context: Context, path: Path) -> Metrics:
    """Check that the checkpoint is a teacher for this data set and this student, and take it as it is."""
    from frs.detectors import load_detector, parameter_count
    from frs.errors import WeightsError

    detector = load_detector(path)
    data = dataset(context, "val")
    classes = tuple(category.name for category in data.categories)
    if detector.spec.classes != classes:
        raise WeightsError(
            f"{path}: the teacher's classes are {list(detector.spec.classes)}, the data set's are {list(classes)}; "
            "both must have the same names in the same order"
        )
    student = context.config.student.detector
    pairs = {
        "levels": (detector.spec.levels, student.levels),
        "octaves": (detector.spec.octaves, student.octaves),
        "ratios": (len(detector.spec.ratios), len(student.ratios)),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise WeightsError(
                f"{path}: the teacher has {key} {ours}, student.detector has {theirs}; FRS compares them place by "
                "place, so give the student the teacher's"
            )
    shutil.copyfile(path, context.outputs["weights"])
    write_json(context.outputs["history"], [])
    return {"params": parameter_count(detector), "given": path.name}
