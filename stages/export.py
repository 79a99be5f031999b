"""export: teacher and student as ONNX files, held against torch on real validation images."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.common import (
    VAL_INPUTS,
    artifacts,
    dataset,
    runtime_facts,
    selection,
    torch_predictor,
    write_json,
)

PARITY_BATCH = 8
"""Images at a time where the graph leaves the batch open."""


def stage(config: Config) -> Stage:
    files = artifacts(config)
    return Stage(
        name="export",
        inputs={**VAL_INPUTS, "teacher": "teacher/weights", "student": "student/weights"},
        outputs={**files, "parity": "parity.json"},
        reads=("export", "input"),
        version=1,
        run=_run,
        facts=runtime_facts,
        publish=files,
    )


def _run(context: Context) -> Metrics:
    from frs.data import evaluation_batches
    from frs.detectors import load_detector
    from frs.edge.ort import OnnxRuntimeSession
    from frs.export.onnx import export_onnx
    from frs.export.parity import parity

    config, size = context.config.export, context.config.input
    options = selection(config)
    files = artifacts(context.config)
    images = dataset(context, "val").first(config.parity_images)
    metrics: Metrics = {}
    for done, label in enumerate(files):
        model, precision = label.split("_")
        context.progress.update(done, len(files), file=files[label])
        detector = load_detector(context.inputs[model]).eval()
        path = context.outputs[label]
        report = export_onnx(
            detector,
            path,
            height=size.height,
            width=size.width,
            batch=config.batch,
            precision=precision,
            **options,
        )
        batches = evaluation_batches(images, size.height, size.width, config.batch or PARITY_BATCH)
        measured = parity(
            torch_predictor(context, detector, "graph"),
            OnnxRuntimeSession(path, threads=context.config.runtime.threads),
            (batch[: len(listed)] for batch, _, listed in batches),
            score_threshold=config.score_threshold,
            detections=config.detections,
        )
        metrics[label] = {**asdict(report), "parity": asdict(measured)}
        context.progress.log(
            f"{path.name}: {report.nodes} nodes; {measured.boxes} boxes compared with torch, "
            f"{measured.unmatched:.2%} without a counterpart"
        )
    write_json(context.outputs["parity"], {label: value["parity"] for label, value in metrics.items()})
    return metrics
