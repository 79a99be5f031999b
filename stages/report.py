"""report: report.json for tools, report.md and pictures for people; the gates are judged here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.common import VAL_INPUTS, artifacts, read_json, version_of, write_json
from stages.gates import failures, judge
from stages.markdown import markdown
from stages.validate import models

PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorrt-rtx", "pycocotools", "numpy", "pillow")


def stage(config: Config) -> Stage:
    return Stage(
        name="report",
        inputs={
            **VAL_INPUTS,
            **{model: f"{model}/weights" for model in models(config)},
            "distillation": "student/distillation",
            "parity": "export/parity",
            "engines": "engine/engines",
            "accuracy": "validate/accuracy",
            "predictions": "validate/predictions",
            "profiles": "profile/profiles",
        },
        outputs={"report": "report.json", "text": "report.md", "pictures": "pictures"},
        reads=("name", "seed", "input", "report", "gates", "control", "export.precisions"),
        version=1,
        run=_run,
        publish={"report": "report.json", "text": "report.md", "pictures": "pictures"},
    )


def _run(context: Context) -> Metrics:
    from stages.pictures import draw_pictures

    report = _report(context)
    context.outputs["pictures"].mkdir(exist_ok=True)
    pictures = draw_pictures(context)
    write_json(context.outputs["report"], report)
    context.outputs["text"].write_text(markdown(report, pictures), encoding="utf-8")
    return {"verdict": report["distillation"]["verdict"], "failed_gates": failures(report["gates"])}


def _report(context: Context) -> dict[str, Any]:
    from frs.edge.machine import describe_machine

    config = context.config
    scored = read_json(context.inputs["accuracy"])
    parity = read_json(context.inputs["parity"])
    gain = scored["gain"]
    described = {model: _describe(context, model) for model in models(config)}
    return {
        "schema": 1,
        "name": config.name,
        "created": _now(),
        "seed": config.seed,
        "environment": {
            "machine": describe_machine(),
            "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        },
        "classes": described["teacher"].pop("classes"),
        "models": {model: {k: v for k, v in facts.items() if k != "classes"} for model, facts in described.items()},
        "distillation": {
            **read_json(context.inputs["distillation"]),
            "gain_AP": gain["difference"] if gain else None,
            "gain_interval": [gain["low"], gain["high"]] if gain else None,
            "verdict": gain["verdict"] if gain else "not shown",
        },
        "accuracy": scored["accuracy"],
        "profiles": read_json(context.inputs["profiles"]),
        "engines": read_json(context.inputs["engines"]),
        "gates": judge(config.gates, parity, scored, artifacts(config)),
    }


def _describe(context: Context, model: str) -> dict[str, Any]:
    from frs.detectors import load_detector, multiply_accumulates, parameter_count

    detector = load_detector(context.inputs[model]).eval()
    size = context.config.input
    return {
        "detector": detector.spec.family,
        "backbone": detector.spec.backbone,
        "params": parameter_count(detector),
        "macs": multiply_accumulates(detector, (size.height, size.width)),
        "classes": list(detector.spec.classes),
    }


def _now() -> str:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def show(run_dir: Path) -> Any:
    """The table of a finished run, as something that rich can print.

    Raises FrsError when the run has no report.
    """
    from frs.errors import FrsError
    from stages.summary import table

    path = run_dir / "report.json"
    if not path.exists():
        raise FrsError(f"{path}: there is no report; finish the run with `frs-pipeline run`")
    return table(read_json(path), run_dir)
