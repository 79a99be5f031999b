"""quantize: int8 variants of the exported files, calibrated on training images."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.deployment import MADE_OF
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import quantised
from stages.common import DATA_INPUTS, dataset, runtime_facts

CALIBRATION_BATCH = 8
"""Images at a time where the graph leaves the batch open."""


def stage(config: Config) -> Stage:
    files = quantised(config)
    sources = {f"{file.model}_{MADE_OF[file.precision]}" for file in files}
    return Stage(
        name="quantize",
        inputs={**DATA_INPUTS, **{label: f"export/{label}" for label in sorted(sources)}},
        outputs={file.label: file.name for file in files},
        reads=("quantize", "input", "export.batch", "seed"),
        version=1,
        run=_run,
        facts=runtime_facts,
        publish={file.label: file.name for file in files},
    )


def _run(context: Context) -> Metrics:
    from frs.data import evaluation_batches
    from frs.export.quantize import quantize

    config, size = context.config.quantize, context.config.input
    images = dataset(context, "train").first(config.images)
    for done, file in enumerate(quantised(context.config)):
        context.progress.update(done, len(quantised(context.config)), file=file.name)
        batches = evaluation_batches(images, size.height, size.width, context.config.export.batch or CALIBRATION_BATCH)
        quantize(
            context.inputs[f"{file.model}_{MADE_OF[file.precision]}"],
            context.outputs[file.label],
            (batch for batch, _, _ in batches),
            precision=file.precision,
        )
    return {}
