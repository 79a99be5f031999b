"""What runs: one file per stage, and the graph that they make."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.stage import Stage


def graph(config: Config) -> tuple[Stage, ...]:
    """The stages of this configuration, each after all that it reads."""
    from stages import data, engine, export, parity, preflight, profile, quantize, report, student, teacher, validate

    control = (student.control_stage(),) if config.control else ()
    quantised = (quantize.stage(config),) if config.quantised else ()
    return (
        data.stage(),
        preflight.stage(),
        teacher.stage(),
        *control,
        student.student_stage(),
        export.stage(config),
        *quantised,
        engine.stage(config),
        parity.stage(config),
        validate.stage(config),
        profile.stage(config),
        report.stage(config),
    )
