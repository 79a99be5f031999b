"""A report as the stage writes it, with names from a hostile data set; figures are round, so that they are seen in the text."""

from __future__ import annotations

from typing import Any

from PIL import Image

from stages.report.pictures import Picture, Pictures

_PARITY = {
    "images": 32, "boxes": 400, "unmatched": 0.125, "score_p95": 0.0625, "score_max": 0.5, "iou_p5": 0.5, "iou_p25": 0.75,
    "box_p95": 9.0, "box_max": 90.0, "worst": [],
}  # fmt: skip
HOSTILE = "<script>alert(1)</script>"
MODELS = {"teacher": 40.0, "control": 30.0, "student": 32.5}


def report(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "schema": 1,
        "name": "a_run",
        "seed": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "command": "frs-pipeline run 'a <b>.yaml' --set seed=0",
        "commit": None,
        "config": {
            "name": "a_run", "export": {"parity_images": 32}, "input": {"height": 64, "width": 64},
            "distill": {"alpha": "auto"}, "report": {"score": None},
        },
        "environment": {
            "machine": {"cpu": "A *fast* CPU", "memory_gb": 8.0, "gpu": None},
            "packages": {"torch": "2.14.1"},
        },
        "data": {split: {"images": 1234, "boxes": 5678, "sha256": "d" * 64} for split in ("train", "val")},
        "classes": [HOSTILE, "a|b", "$x$"],
        "models": {"teacher": {"params": 5e6}, "control": {"params": 1e6}, "student": {"params": 1e6}},
        "distillation": {
            "method": "frs", "alpha": 1e-4, "beta": 0.1, "chosen": "auto", "gain_AP": 2.5, "gain_interval": [1.0, 4.0],
            "verdict": "helped",
        },
        "training": {model: [_epoch(number) for number in range(3)] for model in MODELS},
        "files": [
            {"model": "student", "kind": "weights", "file": "student.safetensors", "bytes": 5_000_000, "sha256": "a" * 64},
            {"model": "student", "kind": "fp32", "file": "student.onnx", "bytes": 4_000_000, "sha256": "b" * 64},
            {"model": "student", "kind": "int8", "file": "student.int8.onnx", "bytes": 1_000_000, "sha256": "c" * 64},
        ],
        "accuracy": [
            _accuracy(model, runtime, decode, ap)
            for model, ap in MODELS.items()
            for runtime, decode in (("torch", "reference"), ("torch", "graph"), ("onnxruntime", "graph"))
        ] + [{**_accuracy("student", "onnxruntime", "graph", 32.25), "precision": "int8"}],
        "parity": {
            "student_fp32": {**_PARITY, "unmatched": 0.0},
            "student_int8": {**_PARITY, "worst": [HOSTILE, "b.png"]},
        },
        "quantization": {
            "student_int8": {
                "drop": 0.25, "limit": 0.5, "source_AP": 30.0, "layers": 3, "kept": ["stem"], "asked_for": [], "steps": [],
                "missing": {}, "calibration": 20, "holdout": 10,
                "sensitivity": {
                    "measured_on": "student_int8", "by": "AP", "why": "quick",
                    "groups": [
                        {"name": "stem", "layers": 1, "drop": 1.25, "kept": 1, "sqnr_db": 9.5},
                        {"name": "head", "layers": 2, "drop": -0.5, "kept": 0, "sqnr_db": 31.5},
                    ],
                },
            }
        },
        "profiles": [_profile(model) for model in ("teacher", "student")],
        "engines": [
            {
                "model": "student", "precision": "fp32", "builder": None, "version": None, "target": None, "size_mb": None,
                "proven": None, "message": "no <b>builder</b>\nhere", "plan_sha256": None,
            }
        ],
        "gates": [{"name": "gain", "limit": 1.0, "value": None, "passed": False, "measured_on": 3}],
    }  # fmt: skip
    return {**made, **changes}


def without_control() -> dict[str, Any]:
    """The same of a run with `control: false`."""
    made = report()
    del made["models"]["control"], made["training"]["control"]
    made["accuracy"] = [row for row in made["accuracy"] if row["model"] != "control"]
    made["distillation"] |= {"gain_AP": None, "gain_interval": None, "verdict": "not shown"}
    return made


def pictures(image: str = HOSTILE) -> Pictures:
    """One picture of each kind, of a photograph with this name."""
    panels = tuple((f"{model}: 1 found", Image.new("RGB", (60, 40), "green")) for model in ("control", "student"))
    one, win, loss = (
        (Picture(f"pictures/{kind}.png", image, "2 errors", panels),) for kind in ("1", "win-1", "loss-1")
    )
    return Pictures(one, win, loss, thresholds={"teacher": 0.25, "control": 0.5, "student": 0.75})


NO_PICTURES = Pictures((), (), (), {})


def _epoch(number: int) -> dict[str, Any]:
    terms = {"loss": 9.0, "classification": 2.0 - 0.5 * number, "box": 0.5, "frs_features": 100.0, "frs_classes": 10.0}
    figures = {"alpha": 1e-2, "beta": 0.1, "w": 1.0} if number else {}
    return {"epoch": number, "terms": terms, "lr": 1e-3, "seconds": 1.0, "AP": None, "figures": figures}


def _accuracy(model: str, runtime: str, decode: str, ap: float) -> dict[str, Any]:
    return {
        "model": model, "runtime": runtime, "precision": "fp32", "decode": decode, "images": 1234, "AP": ap,
        "input": {"resize": "letterbox", "height": 64, "width": 96},
        "AP50": 2 * ap, "AP75": ap / 2, "APs": None, "APm": ap, "APl": ap,
        "per_class": {HOSTILE: ap, "a|b": None, "$x$": ap},
    }  # fmt: skip


def _profile(model: str) -> dict[str, Any]:
    return {
        "model": model, "runtime": "onnxruntime", "precision": "fp32", "batch": 1, "threads": 2,
        "latency_ms": {
            "p50": 10.0, "p50_interval": [9.5, 10.5], "p90": 11.0, "p95": 11.5, "p99": 12.0, "runs": 200, "seconds": 3.01,
        },
        "stages_ms": {"preprocess": 1.0, "copy_in": None, "infer": 8.0, "copy_out": None, "postprocess": 1.0},
        "gpu_ms": None, "throughput_ips": 100.0, "cold_start_ms": 70.0, "peak_memory_mb": 50.0, "device_memory_mb": None,
        "artifact_mb": 4.0, "energy_mj": None, "energy_rail": None,
        "power_mode": None, "clocks": None, "throttled": None, "temperature_c": None,
        "other_load": 2.0, "warnings": [],
        "missing": {"energy_mj": "no power rail", "temperature_c": f"{HOSTILE} has no sensors"},
    }  # fmt: skip
