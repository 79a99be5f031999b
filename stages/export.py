"""export: teacher and student as ONNX files."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import exported
from stages.common import selection, version_of


def stage(config: Config) -> Stage:
    files = {file.label: file.name for file in exported(config)}
    return Stage(
        name="export",
        inputs={"teacher": "teacher/weights", "student": "student/weights"},
        outputs=files,
        reads=("export", "input"),
        version=2,
        run=_run,
        facts=lambda _: {"torch": version_of("torch"), "onnxscript": version_of("onnxscript")},
        publish=files,
    )


def _run(context: Context) -> Metrics:
    from frs.detectors import load_detector
    from frs.export.onnx import export_onnx

    config, size = context.config.export, context.config.input
    files = exported(context.config)
    metrics: Metrics = {}
    for done, file in enumerate(files):
        context.progress.update(done, len(files), file=file.name)
        report = export_onnx(
            load_detector(context.inputs[file.model]).eval(),
            context.outputs[file.label],
            height=size.height,
            width=size.width,
            batch=config.batch,
            precision=file.precision,
            **selection(config),
        )
        metrics[file.label] = asdict(report)
        context.progress.log(f"{file.name}: {report.nodes} nodes, {report.bytes / 1e6:.1f} MB")
    return metrics
