"""The teacher that is given: loaded from whoever wrote it, and held against the data set and the student."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import TeacherConfig
from pipeline.detectors import AnyDetector
from pipeline.published import Published

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.detectors import Detector


def load_teacher(config: TeacherConfig, log: Callable[[str], None]) -> Detector:
    """What `teacher.checkpoint` names. Raises WeightsError."""
    from frs.detectors import from_mmdet, from_torchvision, load_detector

    checkpoint = config.checkpoint
    assert checkpoint is not None
    if isinstance(checkpoint, Path):
        return load_detector(checkpoint)
    load = from_torchvision if checkpoint.library == "torchvision" else from_mmdet
    facts = config.assume.model_dump()
    return load(checkpoint.source, log=log, **facts)


def fit_teacher(
    config: TeacherConfig, detector: Detector, student: AnyDetector, data: CocoDataset | None
) -> tuple[Detector, str]:
    """The detector with the data set's classes, in their order (None: with its own), and what was changed, if anything.

    Raises WeightsError unless it knows those classes, has the levels, strides and anchors of the student, and is what
    `teacher.detector` says, where that is given.
    """
    from frs.detectors import with_classes
    from frs.errors import WeightsError

    source, spec, changed = _source(config), detector.spec, ""
    if data is not None:
        names = tuple(category.name for category in data.categories)
        ids = tuple(category.id for category in data.categories)
        if (spec.classes, spec.category_ids) != (names, ids):
            try:
                detector = with_classes(detector, names, ids)
            except WeightsError as error:
                raise WeightsError(f"{source}: {error}") from None
            changed = f"the data's {len(names)} classes chosen by name among its {len(spec.classes)}"
    _check_pair(source, detector, student)
    if config.detector is not None:
        _check_claims(source, detector, config.detector)
    return detector, changed


def label(checkpoint: Path | Published | None) -> str:
    """For people: without the folder."""
    if isinstance(checkpoint, Published):
        return f"{checkpoint.library}:{checkpoint.name or (checkpoint.file or Path()).name}"
    return checkpoint.name if checkpoint is not None else ""


def _check_pair(source: str, detector: Detector, student: AnyDetector) -> None:
    from frs.errors import WeightsError

    spec = detector.spec
    pairs = {
        "levels": (spec.levels, student.levels),
        "as its finest stride": (spec.finest, student.finest),
        "anchors at a place": (spec.anchors_per_location, student.anchors_per_location),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise WeightsError(
                f"{source}: the teacher has {ours} {key}, student.detector has {theirs}; FRS compares them place by "
                "place, so give the student the teacher's"
            )


def _check_claims(source: str, detector: Detector, section: AnyDetector) -> None:
    """Only the keys that are written in the file claim something, and null does not."""
    from frs.errors import WeightsError

    spec = detector.spec
    claims: dict[str, Any] = section.model_dump(include=section.model_fields_set - {"weights", "family"})
    claims = {"family": section.family, **claims}
    for key, claimed in claims.items():
        found = getattr(spec, key, claimed)
        if claimed is not None and found != claimed:
            raise WeightsError(
                f"{source}: the checkpoint's {key} is {found}, teacher.detector.{key} is {claimed}; correct that, or leave "
                "teacher.detector out, which the checkpoint says by itself"
            )


def _source(config: TeacherConfig) -> str:
    """As the loaders' messages begin: a path, or torchvision's name."""
    checkpoint = config.checkpoint
    return str(checkpoint.source if isinstance(checkpoint, Published) else checkpoint)
