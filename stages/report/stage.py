"""The stage itself: what was measured is gathered into one document, and the documents for people are made from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.stage import Context, Metrics, Stage
from stages.artifacts import deployed, onnx_files, onnx_inputs
from stages.common import DATA_INPUTS, dataset, read_json, version_of, write_json
from stages.report.disagreements import FOLDER, draw_disagreements
from stages.report.gates import failures, judge, worst_images
from stages.report.markdown import markdown
from stages.validate import TRAINED_AT, models

_QUANTIZED = {"quantization": "quantize/quantization", "sensitivity": "quantize/sensitivity"}
PUBLISHED = {"report": "report.json", "text": "report.md", "page": "report.html"}
PACKAGES = (
    "frs-pipeline", "torch", "torchvision", "timm", "onnx", "onnxruntime", "tensorrt-rtx", "pycocotools", "numpy", "pillow",
)  # fmt: skip


def stage(config: Config) -> Stage:
    return Stage(
        name="report",
        inputs={
            **DATA_INPUTS,
            **{model: f"{model}/weights" for model in models(config)},
            **{f"{model}_history": f"{model}/history" for model in models(config)},
            **onnx_inputs(config),
            "distillation": "student/distillation",
            **(_QUANTIZED if config.quantised else {}),
            "parity": "parity/parity",
            "worst": "parity/worst",
            "engines": "engine/engines",
            "accuracy": "validate/accuracy",
            "predictions": "validate/predictions",
            "profiles": "profile/profiles",
        },
        outputs={**PUBLISHED, "pictures": "pictures", "disagreements": FOLDER},
        reads=(
            "name",
            "seed",
            "input",
            "report",
            "gates",
            "control",
            "export",
            "quantize.precisions",
            "quantize.models",
            "validation",
            *TRAINED_AT,
        ),
        version=5,
        run=_run,
        publish={**PUBLISHED, "pictures": "pictures", "disagreements": FOLDER},
        optional=frozenset({"disagreements"}),
    )


def _run(context: Context) -> Metrics:
    from stages.report.page import page
    from stages.report.pictures import draw_pictures

    report = _report(context)
    context.outputs["pictures"].mkdir(exist_ok=True)
    pictures = draw_pictures(context)
    pictures = replace(pictures, disagreements=draw_disagreements(context, report["gates"]))
    write_json(context.outputs["report"], report)
    for label, text in (
        ("text", markdown(report, pictures)),
        ("page", page(report, pictures, context.config.to_yaml())),
    ):
        # A path in it need not be UTF-8.
        context.outputs[label].write_text(text, encoding="utf-8", errors="backslashreplace")
    return {
        "verdict": report["distillation"]["verdict"],
        "failed_gates": failures(report["gates"], worst_images(report)),
    }


def _report(context: Context) -> dict[str, Any]:
    from frs.edge.machine import describe_machine

    config = context.config
    scored = read_json(context.inputs["accuracy"])
    parity, engines = (read_json(context.inputs[label]) for label in ("parity", "engines"))
    quantization = _quantization(context) if config.quantised else {}
    gain = scored["gain"]
    described = {model: describe(context.inputs[model], config) for model in models(config)}
    return {
        "schema": 1,
        "name": config.name,
        "created": _now(),
        "seed": config.seed,
        "command": context.command,
        "commit": context.commit,
        "config": config.model_dump(mode="json"),
        "environment": {
            "machine": describe_machine(),
            "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        },
        "data": {split: _data(context, split) for split in ("train", "val")},
        "classes": described["teacher"][1],
        "models": {model: facts for model, (facts, _) in described.items()},
        "distillation": {
            **read_json(context.inputs["distillation"]),
            "gain_AP": gain["difference"] if gain else None,
            "gain_interval": [gain["low"], gain["high"]] if gain else None,
            "verdict": gain["verdict"] if gain else "not shown",
        },
        "training": {model: read_json(context.inputs[f"{model}_history"]) for model in models(config)},
        "files": [
            *(_file(context, model, model, "weights") for model in models(config)),
            *(_file(context, file.label, file.model, file.precision) for file in onnx_files(config)),
        ],
        "accuracy": scored["accuracy"],
        "parity": parity,
        "quantization": quantization,
        "profiles": read_json(context.inputs["profiles"]),
        "engines": engines,
        "gates": judge(config.gates, parity, scored, deployed(config, engines), quantization),
    }


def _quantization(context: Context) -> dict[str, Any]:
    """Label of each int8 file -> what it keeps and loses on held-out images, and what its layers cost, group by group."""
    made, sensitivity = (read_json(context.inputs[label]) for label in ("quantization", "sensitivity"))
    for label, found in sensitivity.items():
        groups = [{**group, "sqnr_db": _noisiest(found["layers"], group["name"])} for group in found["groups"]]
        made[label]["sensitivity"] = {**{key: found[key] for key in ("measured_on", "by", "why")}, "groups": groups}
    return dict(made)


def _noisiest(layers: Sequence[Mapping[str, Any]], group: str) -> float | None:
    """The lowest signal-to-quantisation-noise ratio of a group's layers, dB; None where nothing adds noise."""
    ratios = [layer["sqnr_db"] for layer in layers if layer["group"] == group and layer["sqnr_db"] is not None]
    return min(ratios, default=None)


def _data(context: Context, split: str) -> dict[str, Any]:
    """sha256: of the annotations as they were understood and of the images: figures on the same ones can be compared."""
    data = dataset(context, split)
    content = [context.hash_file(context.inputs[split]), read_json(context.inputs["image_hashes"])[split]]
    return {
        "images": len(data.images),
        "boxes": sum(len(image.boxes) for image in data.images),
        "sha256": hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    }


def _file(context: Context, label: str, model: str, kind: str) -> dict[str, Any]:
    """kind: "weights", or the precision of an ONNX file."""
    path = context.inputs[label]
    size, sha256 = path.stat().st_size, context.hash_file(path)
    return {"model": model, "kind": kind, "file": path.name, "bytes": size, "sha256": sha256}


def describe(weights: Path, config: Config) -> tuple[dict[str, Any], list[str]]:
    """An entry of the report's `models`, and the names of the classes."""
    from frs.detectors import load_detector, multiply_accumulates, parameter_count

    detector = load_detector(weights).eval()
    detector.proposals = config.export.proposals
    facts = {
        "detector": detector.spec.family,
        "backbone": detector.spec.backbone,
        "params": parameter_count(detector),
        "macs": multiply_accumulates(detector, (config.input.height, config.input.width)),
    }
    return facts, list(detector.spec.classes)


def _now() -> str:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat(timespec="seconds")
