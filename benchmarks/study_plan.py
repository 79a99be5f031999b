"""What the study trains: methods by name, each a stage of the pipeline and what its configuration is changed by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Method:
    """stage: whose weights are scored. seeds: from 0 up to this. overrides: as `--set` takes them. times: by which the epochs
    of the configuration are multiplied. as_long_as: the method whose seconds decide their number. on: the one data set for
    which it is meant."""

    name: str
    stage: Literal["teacher", "control", "student"]
    seeds: int
    shown: str
    overrides: tuple[str, ...] = ()
    times: int = 1
    as_long_as: str | None = None
    on: str | None = None


@dataclass(frozen=True)
class Study:
    """splits: what is scored. reference: the method that the others are compared with, seed by seed. commit: the last one
    whose configuration has all that the methods ask for, where that is not this one."""

    name: str
    splits: tuple[str, ...]
    reference: str
    methods: tuple[Method, ...]
    commit: str | None = None


TEACHER = Method("teacher", "teacher", 1, "teacher")
CONTROL = Method("control", "control", 5, "control: the student alone")
CONTROL_TWICE = Method("control-twice", "control", 3, "control, twice the epochs", times=2)
FRS = Method("frs", "student", 5, "FRS")


_MILD = ("student.train.augment.scale=[0.8, 1.25]", "student.train.augment.colour=0.2")
"""What suits the control of cards better than the augmentation of the other rows, in which a teacher has more to say."""


def _schedule(lr: str) -> Method:
    return Method(f"control-{lr}", "control", 2, f"control, lr {lr}", (f"student.train.lr={lr}",))


def _frs(name: str, shown: str, *overrides: str, seeds: int = 3) -> Method:
    return Method(name, "student", seeds, shown, tuple(f"distill.{override}" for override in overrides))


SCHEDULE = Study(
    "schedule",
    ("val",),
    "control-4.0e-3",
    (
        *(_schedule(lr) for lr in ("1.0e-3", "2.0e-3", "4.0e-3", "8.0e-3")),
        Method("control-4.0e-3-mild", "control", 2, "control, lr 4.0e-3, milder augmentation", _MILD, on="cards"),
    ),
)
"""The control's, for its own good, before anything is compared with it."""

_SHORT = "student.train.epochs=16"


def _choice(name: str, shown: str, *overrides: str, seeds: int = 2) -> Method:
    return Method(name, "student", seeds, shown, (_SHORT, *(f"distill.{override}" for override in overrides)))


CHOICES = Study(
    "choices",
    ("val",),
    "gradient",
    (
        TEACHER,
        Method("control", "control", 3, "control", (_SHORT,)),
        _choice("gradient", "auto by gradients", "auto_by=gradient", seeds=3),
        _choice("loss", "auto by losses", seeds=3),
        _choice("normalize", "features standardised by channel", "auto_by=gradient", "normalize=true", seeds=3),
        _choice("pyramid", "mean over the pyramid", "auto_by=gradient", "mean_over=pyramid", seeds=3),
        _choice("both", "both of these", "auto_by=gradient", "normalize=true", "mean_over=pyramid", seeds=3),
        _choice("boxes", "the score 1 in boxes, 0 outside", "auto_by=gradient", "score=boxes"),
        _choice("everywhere", "the score 1 everywhere", "auto_by=gradient", "score=everywhere"),
        _choice("spread", "the score over the area of its anchors, at all levels", "auto_by=gradient", "score=spread"),
        _choice("spread-2", "the square of that", "auto_by=gradient", "score=spread", "score_power=2"),
        _choice("shares-3", "shares of 3", "auto_by=gradient", "feature_share=3", "class_share=3"),
        _choice("power-2", "score squared", "auto_by=gradient", "score_power=2"),
        _choice("power-half", "root of the score", "auto_by=gradient", "score_power=0.5"),
        _choice("quality-focal", "quality focal class term", "auto_by=gradient", "class_loss=quality_focal"),
        _choice("warmup-0", "no warm-up", "auto_by=gradient", "warmup_steps=0"),
        _choice("warmup-200", "warm-up of 200 steps", "auto_by=gradient", "warmup_steps=200"),
    ),
    commit="3f96d7c",
)
"""Of the distillation, on `val` and a short schedule; the differences are to `gradient`."""

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
        Method("control-mild", "control", 3, "control, milder augmentation", _MILD, on="cards"),
        CONTROL_TWICE,
        Method("control-as-long", "control", 3, "control, for the time that FRS took", as_long_as="frs"),
    ),
)
"""What docs/study.md reports; nothing was chosen by its `test`."""

LONG = Study(
    "long",
    ("val", "test"),
    CONTROL_TWICE.name,
    (TEACHER, CONTROL_TWICE, Method("frs-twice", "student", 3, "FRS, twice the epochs", times=2)),
)
"""Whether FRS still gains when the control is given twice the time; the controls are those of `main`."""

STUDIES = {study.name: study for study in (SCHEDULE, CHOICES, MAIN, LONG)}
