"""validate: COCO AP of everything that could be shipped, and whether the student gained on its control."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.common import (
    VAL_INPUTS,
    artifacts,
    predict_split,
    read_json,
    runtime_facts,
    torch_predictor,
    write_json,
)

if TYPE_CHECKING:
    from frs.edge.predictor import Predictor


def models(config: Config) -> tuple[str, ...]:
    """The trained detectors, the control among them where there is one."""
    return ("teacher", "control", "student") if config.control else ("teacher", "student")


def stage(config: Config) -> Stage:
    return Stage(
        name="validate",
        inputs={
            **VAL_INPUTS,
            **{model: f"{model}/weights" for model in models(config)},
            **{label: f"export/{label}" for label in artifacts(config)},
        },
        outputs={"accuracy": "accuracy.json", "predictions": "predictions"},
        reads=("input", "export", "validation", "control", "seed"),
        version=1,
        run=_run,
        facts=runtime_facts,
        publish={"predictions": "predictions"},
    )


def _run(context: Context) -> Metrics:
    from frs.evaluation import evaluate

    folder = context.outputs["predictions"]
    folder.mkdir(exist_ok=True)
    size = context.config.input
    accuracy = []
    for row, predictor in _predictors(context):
        detections = predict_split(context, predictor, _batch(context.config, row["runtime"]))
        write_json(folder / f"{file_stem(row)}.json", detections)
        scored = evaluate(context.inputs["val"], detections)
        shape = {"resize": "letterbox", "height": size.height, "width": size.width}
        accuracy.append({**row, "input": shape, **scored.to_json()})
        context.progress.log(f"{file_stem(row)}: AP {scored.AP:.1f}, AP50 {scored.AP50:.1f}")
    gain = _gain(context) if context.config.control else None
    write_json(context.outputs["accuracy"], {"accuracy": accuracy, "gain": gain})
    return {"AP": {file_stem(row): row["AP"] for row in accuracy}, "gain": gain}


def file_stem(row: dict[str, Any]) -> str:
    """The name of a row's predictions: model, runtime, precision, decode."""
    return "-".join(row[key] for key in ("model", "runtime", "precision", "decode"))


def _predictors(context: Context) -> Iterator[tuple[dict[str, str], Predictor]]:
    """Every row of the accuracy table with the predictor that makes it, one at a time in memory."""
    from frs.detectors import load_detector
    from frs.edge.ort import OnnxRuntimeSession
    from stages.training import device

    where = device(context)
    for model in models(context.config):
        detector = load_detector(context.inputs[model]).eval().to(where.torch_device)
        for decode in ("reference", "graph"):
            row = {"model": model, "runtime": "torch", "precision": "fp32", "decode": decode}
            yield row, torch_predictor(context, detector, decode)
    for label in artifacts(context.config):
        model, precision = label.split("_")
        row = {"model": model, "runtime": "onnxruntime", "precision": precision, "decode": "graph"}
        yield row, OnnxRuntimeSession(context.inputs[label], threads=context.config.runtime.threads)


def _batch(config: Config, runtime: str) -> int:
    """The batch that validation asks for, or the one that is fixed in the graph."""
    if runtime == "torch":
        return config.validation.batch
    return config.export.batch or config.validation.batch


def _gain(context: Context) -> dict[str, Any]:
    """AP of the student less AP of its control, both in torch with the reference decode; paired over images."""
    from frs.evaluation import paired_bootstrap, verdict

    rows = {
        model: read_json(context.outputs["predictions"] / f"{model}-torch-fp32-reference.json")
        for model in ("control", "student")
    }
    gain = paired_bootstrap(context.inputs["val"], rows["control"], rows["student"], seed=context.config.seed)
    return {**asdict(gain), "verdict": verdict(gain)}
