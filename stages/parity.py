"""parity: everything that could be shipped and runs here, held against torch on the same pixels of real validation images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import deployed, onnx_inputs, plan_inputs
from stages.common import (
    VAL_INPUTS,
    batch_of,
    dataset,
    engine_facts,
    predict_split,
    read_json,
    torch_predictor,
    write_json,
)

if TYPE_CHECKING:
    from frs.data import CocoDataset
    from frs.evaluation import Row
    from frs.evaluation.parity import Compared

PARITY_BATCH = 8
"""Images at a time where the graph leaves the batch open."""
WORST = 3
"""Images of each artifact that are named, and whose boxes are kept so that they can be drawn."""


def stage(config: Config) -> Stage:
    return Stage(
        name="parity",
        inputs={
            **VAL_INPUTS,
            **{model: f"{model}/weights" for model in ("teacher", "student")},
            **onnx_inputs(config),
            **plan_inputs(config),
        },
        outputs={"parity": "parity.json", "worst": "worst.json"},
        reads=("export", "input"),
        version=2,
        run=_run,
        facts=engine_facts,
    )


def _run(context: Context) -> Metrics:
    from frs.edge.sessions import open_session
    from frs.evaluation.parity import summarise, worst

    images = dataset(context, "val").first(context.config.export.parity_images)
    names = {image.id: image.file_name for image in images.images}
    torch = {model: _torch(context, model, images) for model in ("teacher", "student")}
    metrics: Metrics = {}
    kept: dict[str, Any] = {}
    for artifact in deployed(context.config, read_json(context.inputs["engines"])):
        with open_session(context.inputs[artifact.input], threads=context.config.runtime.threads) as session:
            batch = batch_of(session, context.config.export.batch or PARITY_BATCH)
            found = predict_split(context, session, batch, sample=images)
        reference = torch[artifact.file.model]
        compared = _compared(context, images, reference, found)
        measured, shown = summarise(list(compared.values())), worst(compared, WORST)
        metrics[artifact.label] = {**asdict(measured), "worst": [names[image] for image in shown]}
        kept[artifact.label] = [
            {"image_id": image, "torch": _of_image(reference, image), "file": _of_image(found, image)}
            for image in shown
        ]
        context.progress.log(
            f"{artifact.name}: {measured.boxes} boxes compared with torch, {measured.unmatched:.2%} without a counterpart"
        )
    write_json(context.outputs["parity"], metrics)
    write_json(context.outputs["worst"], kept)
    return metrics


def _torch(context: Context, model: str, images: CocoDataset) -> list[Row]:
    """On the CPU whatever else there is: what is held against it must not lose digits itself."""
    from frs.detectors import load_detector

    predictor = torch_predictor(context, load_detector(context.inputs[model]).eval(), "graph")
    return predict_split(context, predictor, context.config.export.batch or PARITY_BATCH, sample=images)


def _compared(context: Context, images: CocoDataset, torch: Sequence[Row], found: Sequence[Row]) -> dict[int, Compared]:
    """Image id -> how it compares."""
    from frs.evaluation.parity import by_image, compare

    config = context.config.export
    ids = [image.id for image in images.images]
    categories = [category.id for category in images.categories]
    a, b = (by_image(rows, ids, categories) for rows in (torch, found))
    return {
        image: compare(a[image], b[image], score_threshold=config.score_threshold, detections=config.detections)
        for image in ids
    }


def _of_image(rows: Sequence[Row], image: int) -> list[Row]:
    return [row for row in rows if row["image_id"] == image]
