"""What the study trains: methods by name, each a stage of the pipeline and what its configuration is changed by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """stage: whose weights are scored. seeds: from 0 up to this. overrides: as `--set` takes them. as_long_as: the method
    whose seconds decide the number of epochs."""

    name: str
    stage: Literal["teacher", "control", "student"]
    seeds: int
    shown: str
    overrides: tuple[str, ...] = ()
    as_long_as: str | None = None


@dataclass(frozen=True)
class Study:
    """splits: what is scored. reference: the method that the others are compared with, seed by seed."""

    name: str
    splits: tuple[str, ...]
    reference: str
    methods: tuple[Method, ...]


TEACHER = Method("teacher", "teacher", 1, "teacher")
CONTROL = Method("control", "control", 5, "control: the student alone")
FRS = Method("frs", "student", 5, "FRS")


def _schedule(epochs: int, lr: str) -> Method:
    overrides = (f"student.train.epochs={epochs}", f"student.train.lr={lr}")
    return Method(f"control-{epochs}-{lr}", "control", 2, f"control, lr {lr}, {epochs} epochs", overrides)


def _frs(name: str, shown: str, *overrides: str, seeds: int = 3) -> Method:
    return Method(name, "student", seeds, shown, tuple(f"distill.{override}" for override in overrides))


SCHEDULE = Study(
    "schedule",
    ("val",),
    "control-32-1.0e-3",
    (TEACHER, *(_schedule(32, lr) for lr in ("1.0e-3", "2.0e-3", "4.0e-3", "8.0e-3"))),
)
"""The control's, for its own good, before anything is compared with it."""

MAIN = Study(
    "main",
    ("val", "test"),
    "control",
    (
        TEACHER,
        CONTROL,
        FRS,
        _frs("everywhere", "whole-feature imitation: the score 1 everywhere", "score=everywhere"),
        _frs("boxes", "box-masked imitation: 1 inside annotated boxes, 0 outside", "score=boxes"),
        _frs("frs-features", "FRS, features only", "beta=0"),
        _frs("frs-classes", "FRS, classes only", "alpha=0"),
        Method("control-twice", "control", 3, "control, twice the epochs", ("student.train.epochs=64",)),
        Method("control-as-long", "control", 3, "control, for the time that FRS took", as_long_as="frs"),
    ),
)
"""What docs/study.md reports; nothing was chosen by its `test`."""

STUDIES = {study.name: study for study in (SCHEDULE, MAIN)}
