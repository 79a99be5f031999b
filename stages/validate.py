"""validate: COCO AP of everything that could be shipped, and whether the student gained on its control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import deployed, onnx_inputs, plan_inputs
from stages.common import (
    VAL_INPUTS,
    batch_of,
    engine_facts,
    predict_split,
    read_json,
    torch_predictor,
    write_json,
)

if TYPE_CHECKING:
    from frs.data import ShortestEdge
    from frs.edge.predictor import Predictor


TRAINED_AT = ("student.train.resize", "student.train.short_side", "student.train.long_side")
"""What `resizes` and `scored_edge` read besides `validation`."""


def models(config: Config) -> tuple[str, ...]:
    """The trained detectors, the control among them where there is one."""
    return ("teacher", "control", "student") if config.control else ("teacher", "student")


def resizes(config: Config) -> tuple[str, ...]:
    """How images are resized where torch is scored with the reference decode.

    First as the student was trained: on that the gain, the pictures and the report's first table are.
    """
    trained, scored = config.student.train.resize, config.validation.resize
    others = {"auto": ("letterbox",), "both": ("letterbox", "shortest_edge")}.get(scored, ())
    return tuple(dict.fromkeys((trained, *others)))


def scored_edge(config: Config) -> ShortestEdge:
    """What "shortest_edge" stands for in the accuracy table."""
    from frs.data import ShortestEdge

    scored, trained = config.validation, config.student.train
    return ShortestEdge((scored.short_side or max(trained.short_side),), scored.long_side or trained.long_side)


def stage(config: Config) -> Stage:
    return Stage(
        name="validate",
        inputs={
            **VAL_INPUTS,
            **{model: f"{model}/weights" for model in models(config)},
            **onnx_inputs(config),
            **plan_inputs(config),
        },
        outputs={"accuracy": "accuracy.json", "predictions": "predictions"},
        reads=("input", "export", "validation", "control", "seed", *TRAINED_AT),
        version=3,
        run=_run,
        facts=engine_facts,
        publish={"predictions": "predictions"},
    )


def _run(context: Context) -> Metrics:
    from frs.evaluation import evaluate

    folder = context.outputs["predictions"]
    folder.mkdir(exist_ok=True)
    config = context.config
    accuracy = []
    for row, predictor, batch in _predictors(context):
        edge = scored_edge(config) if row["input"]["resize"] == "shortest_edge" else None
        detections = predict_split(context, predictor, batch, edge)
        write_json(folder / f"{file_stem(row)}.json", detections)
        scored = evaluate(context.inputs["val"], detections)
        accuracy.append({**row, **scored.to_json()})
        context.progress.log(f"{file_stem(row)}: AP {scored.AP:.1f}, AP50 {scored.AP50:.1f}")
    gain = _gain(context) if config.control else None
    write_json(context.outputs["accuracy"], {"accuracy": accuracy, "gain": gain})
    return {"AP": {file_stem(row): row["AP"] for row in accuracy}, "gain": gain}


def file_stem(row: dict[str, Any]) -> str:
    """The name of a row's predictions: model, runtime, precision, decode, and how images are resized if not letterboxed."""
    resize = row["input"]["resize"]
    return "-".join([*(row[key] for key in ("model", "runtime", "precision", "decode")), *_unless_letterbox(resize)])


def measured_file(config: Config, model: str) -> str:
    """The file of the predictions by which models are compared: torch, reference decode, resized as the student was trained."""
    return "-".join([model, "torch", "fp32", "reference", *_unless_letterbox(resizes(config)[0])]) + ".json"


def _unless_letterbox(resize: str) -> list[str]:
    return [] if resize == "letterbox" else [resize]


def _predictors(context: Context) -> Iterator[tuple[dict[str, Any], Predictor, int]]:
    """Every row of the accuracy table with the predictor that makes it and its batch, one at a time in memory."""
    from frs.detectors import load_detector
    from frs.edge.sessions import open_session
    from stages.training import device

    where = device(context)
    batch = context.config.validation.batch
    for model in models(context.config):
        detector = load_detector(context.inputs[model]).eval().to(where.torch_device)
        row = {"model": model, "runtime": "torch", "precision": "fp32"}
        for resize in resizes(context.config):
            yield (
                {**row, "decode": "reference", "input": _input(context.config, resize)},
                torch_predictor(context, detector, "reference"),
                batch,
            )
        yield (
            {**row, "decode": "graph", "input": _input(context.config, "letterbox")},
            torch_predictor(context, detector, "graph"),
            batch,
        )
    for each in deployed(context.config, read_json(context.inputs["engines"])):
        row = {"model": each.file.model, "runtime": each.runtime, "precision": each.file.precision, "decode": "graph"}
        with open_session(context.inputs[each.input], threads=context.config.runtime.threads) as session:
            yield {**row, "input": _input(context.config, "letterbox")}, session, batch_of(session, batch)


def _input(config: Config, resize: str) -> dict[str, Any]:
    """Of a letterbox its height and width; else the shorter side and the most that the longer one may have."""
    if resize == "letterbox":
        return {"resize": resize, "height": config.input.height, "width": config.input.width}
    edge = scored_edge(config)
    return {"resize": resize, "height": edge.short_sides[0], "width": edge.long_side}


def _gain(context: Context) -> dict[str, Any]:
    """AP of the student less AP of its control, by `measured_file`; paired over images."""
    from frs.evaluation import paired_bootstrap, verdict

    rows = {
        model: read_json(context.outputs["predictions"] / measured_file(context.config, model))
        for model in ("control", "student")
    }
    gain = paired_bootstrap(context.inputs["val"], rows["control"], rows["student"], seed=context.config.seed)
    return {**asdict(gain), "verdict": verdict(gain)}
