"""student, and its control: the same network, seed, schedule and data order, with and without distillation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.config import Config, DistillConfig
from pipeline.stage import Context, Metrics, Stage
from stages.common import DATA_INPUTS, dataset, external, training_facts, write_json
from stages.training import (
    TRAINING_OPTIONAL,
    TRAINING_OUTPUTS,
    in_ranks,
    is_writer,
    new_detector,
    train_detector,
    training_published,
)


def student_stage() -> Stage:
    return Stage(
        name="student",
        inputs={**DATA_INPUTS, "teacher": "teacher/weights"},
        outputs={
            "weights": "student.safetensors",
            "distillation": "distillation.json",
            **TRAINING_OUTPUTS,
        },
        reads=("student", "distill", "input", "seed"),
        version=3,
        run=_run_student,
        external=external_files,
        facts=training_facts,
        publish={"weights": "student.safetensors", **training_published("student")},
        optional=TRAINING_OPTIONAL,
    )


def control_stage() -> Stage:
    return Stage(
        name="control",
        inputs=DATA_INPUTS,
        outputs={"weights": "control.safetensors", **TRAINING_OUTPUTS},
        reads=("student", "input", "seed"),
        version=2,
        run=_run_control,
        external=external_files,
        facts=training_facts,
        publish={"weights": "control.safetensors", **training_published("control")},
        optional=TRAINING_OPTIONAL,
    )


def external_files(config: Config) -> Mapping[str, Path]:
    """The backbone's weights, where they are a file."""
    return external({"student.detector.weights": config.student.detector.weights})


def _run_control(context: Context) -> Metrics:
    return in_ranks(context, "control", context.config.student.train, _train_control)


def _run_student(context: Context) -> Metrics:
    return in_ranks(context, "student", context.config.student.train, _train_student)


def _train_control(context: Context) -> Metrics:
    from frs.training import DetectionObjective

    config = context.config.student
    detector = new_detector(context, config.detector, dataset(context, "val"))
    _, metrics = train_detector(context, detector, config.train, lambda detector, *_: DetectionObjective(detector))
    return metrics


def _train_student(context: Context) -> Metrics:
    from frs.detectors import Detector, load_detector
    from frs.distill.objective import DistillationObjective, DistillationWeights
    from frs.errors import TrainingError
    from frs.training import Device

    config, settings = context.config.student, context.config.distill
    detector = new_detector(context, config.detector, dataset(context, "val"))
    teacher = load_detector(context.inputs["teacher"])

    def objective(detector: Detector, device: Device, steps: int) -> DistillationObjective:
        short = too_short(settings, steps)
        if short:
            raise TrainingError(short)
        device.place(teacher)
        return DistillationObjective(detector, teacher, DistillationWeights(**settings.model_dump()))

    trained, metrics = train_detector(context, detector, config.train, objective)
    assert isinstance(trained, DistillationObjective)
    distillation = {
        "method": "frs",
        "alpha": trained.alpha,
        "beta": trained.beta,
        "chosen": "auto" if "auto" in (settings.alpha, settings.beta) else "given",
    }
    if is_writer():
        write_json(context.outputs["distillation"], distillation)
    return {**metrics, **distillation}


def too_short(settings: DistillConfig, steps: int) -> str:
    """What is wrong with a student's training of so many steps, if anything."""
    if "auto" not in (settings.alpha, settings.beta) or steps > settings.auto_steps:
        return ""
    return (
        f"student.train has {steps} steps, and distill.auto_steps measures alpha and beta on the first "
        f"{settings.auto_steps}, so nothing would be distilled; lower distill.auto_steps, or train for more epochs"
    )
