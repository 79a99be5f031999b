"""teacher: trained here, or taken from a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.detectors import AnyDetector
from pipeline.stage import Context, Metrics, Stage
from stages.common import DATA_INPUTS, dataset, external, training_facts, write_json
from stages.training import new_detector, train_detector

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.detectors import Detector


def stage() -> Stage:
    return Stage(
        name="teacher",
        inputs=DATA_INPUTS,
        outputs={"weights": "teacher.safetensors", "history": "history.json"},
        reads=("teacher", "input", "seed"),
        version=1,
        run=_run,
        external=external_files,
        facts=training_facts,
        publish={"weights": "teacher.safetensors"},
    )


def external_files(config: Config) -> Mapping[str, Path]:
    """The checkpoint, and the backbone's weights, where they are files."""
    teacher = config.teacher
    return external({"teacher.checkpoint": teacher.checkpoint, "teacher.detector.weights": teacher.detector.weights})


def _run(context: Context) -> Metrics:
    from frs.training import DetectionObjective

    config = context.config.teacher
    if config.checkpoint is not None:
        return _take(context, config.checkpoint)
    detector = new_detector(context, config.detector, dataset(context, "val"))
    _, metrics = train_detector(context, detector, config.train, lambda detector, *_: DetectionObjective(detector))
    return metrics


def given_teacher(context: Context, path: Path) -> Detector:
    """The checkpoint, if it is a teacher for this data set and this student."""
    from frs.detectors import load_detector

    detector = load_detector(path)
    check_teacher(path, detector, dataset(context, "val"), context.config.student.detector)
    return detector


def _take(context: Context, path: Path) -> Metrics:
    """The checkpoint as it is."""
    from frs.detectors import parameter_count

    detector = given_teacher(context, path)
    shutil.copyfile(path, context.outputs["weights"])
    write_json(context.outputs["history"], [])
    return {"params": parameter_count(detector), "given": path.name}


def check_teacher(path: Path, detector: Detector, data: CocoDataset, student: AnyDetector) -> None:
    """Raises WeightsError unless the detector knows the data set's classes and the student's anchors."""
    from frs.errors import WeightsError

    spec = detector.spec
    classes = tuple(category.name for category in data.categories)
    if spec.classes != classes:
        raise WeightsError(
            f"{path}: the teacher's classes are {_some(spec.classes)}, the data set's are {_some(classes)}; both must have "
            "the same names in the same order"
        )
    pairs = {
        "levels": (spec.levels, student.levels),
        "as its finest stride": (spec.finest, student.finest),
        "anchors at a place": (spec.anchors_per_location, student.anchors_per_location),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise WeightsError(
                f"{path}: the teacher has {ours} {key}, student.detector has {theirs}; FRS compares them place by "
                "place, so give the student the teacher's"
            )


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{', '.join(names[:8])}{more}"
