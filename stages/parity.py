"""parity: every file that could be shipped, held against torch on the same pixels of real validation images."""

from __future__ import annotations

from dataclasses import asdict

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import onnx_files, onnx_inputs
from stages.common import VAL_INPUTS, dataset, runtime_facts, torch_predictor, write_json

PARITY_BATCH = 8
"""Images at a time where the graph leaves the batch open."""


def stage(config: Config) -> Stage:
    return Stage(
        name="parity",
        inputs={
            **VAL_INPUTS,
            **{model: f"{model}/weights" for model in ("teacher", "student")},
            **onnx_inputs(config),
        },
        outputs={"parity": "parity.json"},
        reads=("export", "input"),
        version=1,
        run=_run,
        facts=runtime_facts,
    )


def _run(context: Context) -> Metrics:
    from frs.data import evaluation_batches
    from frs.detectors import load_detector
    from frs.edge.ort import OnnxRuntimeSession
    from frs.export.parity import parity

    config, size = context.config.export, context.config.input
    files = onnx_files(context.config)
    images = dataset(context, "val").first(config.parity_images)
    metrics: Metrics = {}
    for done, file in enumerate(files):
        context.progress.update(done, len(files), file=file.name)
        batches = evaluation_batches(images, size.height, size.width, config.batch or PARITY_BATCH)
        measured = parity(
            torch_predictor(context, load_detector(context.inputs[file.model]).eval(), "graph"),
            OnnxRuntimeSession(context.inputs[file.label], threads=context.config.runtime.threads),
            (batch[: len(listed)] for batch, _, listed in batches),
            score_threshold=config.score_threshold,
            detections=config.detections,
        )
        metrics[file.label] = asdict(measured)
        context.progress.log(
            f"{file.name}: {measured.boxes} boxes compared with torch, {measured.unmatched:.2%} without a counterpart"
        )
    write_json(context.outputs["parity"], metrics)
    return metrics
