from __future__ import annotations

from typing import Any

import pytest

from pipeline.deployment import GatesConfig
from stages.artifacts import Deployed, OnnxFile
from stages.report.gates import about, ap_limit, failures, judge

MEASURED = {"boxes": 400, "unmatched": 0.0025, "score_p95": 0.001, "iou_p5": 0.97, "iou_p25": 0.99}
FP32 = Deployed(OnnxFile("student", "fp32", "export"), "onnxruntime")
PLAN = Deployed(OnnxFile("student", "fp32", "export"), "tensorrt")
INT8 = Deployed(OnnxFile("student", "int8", "quantize"), "onnxruntime")


def scored(runtime: str, precision: str, ap: float) -> dict[str, Any]:
    row = {"model": "student", "runtime": runtime, "precision": precision, "decode": "graph"}
    return {**row, "AP": ap, "images": 9}


SCORED: dict[str, Any] = {
    "accuracy": [
        scored("torch", "fp32", 30.0),
        scored("onnxruntime", "fp32", 29.8),
        scored("onnxruntime", "int8", 29.3),
        scored("tensorrt", "fp32", 29.9),
    ],
    "gain": {"difference": 1.2, "images": 9},
}


def rows(*artifacts: Deployed, parity: dict[str, Any] | None = None, **limits: Any) -> dict[str, dict[str, Any]]:
    chosen = artifacts or (FP32,)
    measured = parity or {each.label: MEASURED for each in chosen}
    return {row["name"]: row for row in judge(GatesConfig(**limits), measured, SCORED, chosen)}


def test_all_limits_met() -> None:
    judged = rows()
    assert set(judged) == {
        "parity.student_fp32.unmatched",
        "parity.student_fp32.score_p95",
        "parity.student_fp32.iou_p5",
        "ap_drop.student_fp32",
    }
    assert all(row["passed"] for row in judged.values())
    assert judged["ap_drop.student_fp32"]["value"] == pytest.approx(0.2)
    assert failures(judged.values()) == []


def test_too_few_boxes_is_not_measured_and_so_not_passed() -> None:
    judged = rows(parity={"student_fp32": {**MEASURED, "boxes": 12}})
    assert not judged["parity.student_fp32.unmatched"]["passed"]
    assert judged["parity.student_fp32.unmatched"]["value"] is None
    assert "parity.student_fp32.iou_p5: not measured, only 12 boxes could be compared" in failures(judged.values())


def test_boxes_of_which_none_has_a_counterpart_fail_every_parity_gate() -> None:
    alone = {**MEASURED, "unmatched": 1.0, **dict.fromkeys(("score_p95", "iou_p5", "iou_p25"))}
    judged = rows(parity={"student_fp32": alone})
    assert [row["name"] for row in judged.values() if row["passed"]] == ["ap_drop.student_fp32"]
    assert "parity.student_fp32.score_p95: not measured, only 0 boxes could be compared" in failures(judged.values())


@pytest.mark.parametrize(
    ("limit", "name", "sentence"),
    [
        ({"parity_unmatched": 0.001}, "parity.student_fp32.unmatched", "0.0025, the limit is 0.001 (measured on 400)"),
        ({"parity_score": 0.0001}, "parity.student_fp32.score_p95", "0.001, the limit is 0.0001 (measured on 400)"),
        ({"parity_iou": 0.98}, "parity.student_fp32.iou_p5", "0.97, the limit is at least 0.98 (measured on 400)"),
        ({"ap_drop": 0.1}, "ap_drop.student_fp32", "0.2, the limit is 0.1 (measured on 9)"),
        ({"min_gain": 2.0}, "gain", "1.2, the limit is at least 2 (measured on 9)"),
    ],
)
def test_a_limit_that_is_not_met(limit: dict[str, Any], name: str, sentence: str) -> None:
    judged = rows(**limit)
    assert [row["name"] for row in judged.values() if not row["passed"]] == [name]
    assert failures(judged.values()) == [f"{name}: {sentence}"]


def test_int8_files_have_limits_of_their_own() -> None:
    """0.09, 0.04 and 0.92 would fail every limit of a floating-point file."""
    near = {**MEASURED, "unmatched": 0.09, "score_p95": 0.04, "iou_p5": 0.55, "iou_p25": 0.92}
    assert all(row["passed"] for row in rows(INT8, parity={"student_int8": near}).values())
    assert sum(row["passed"] for row in rows(FP32, parity={"student_fp32": near}).values()) == 1
    tight = rows(
        INT8, parity={"student_int8": near}, int8_unmatched=0.08, int8_score=0.03, int8_iou=0.95, int8_ap_drop=0.6
    )
    assert {name for name, row in tight.items() if not row["passed"]} == {
        "parity.student_int8.unmatched",
        "parity.student_int8.score_p95",
        "parity.student_int8.iou_p25",
        "ap_drop.student_int8",
    }
    assert {ap_limit(GatesConfig(), f"teacher_{each}") for each in ("int8", "int8+fp16.tensorrt", "int8-cpu")} == {1.0}
    assert ap_limit(GatesConfig(), "teacher_fp16.tensorrt") == 0.5


def test_an_engine_is_judged_apart_from_its_file() -> None:
    judged = rows(FP32, PLAN)
    assert judged["ap_drop.student_fp32.tensorrt"]["value"] == pytest.approx(0.1)
    assert "parity.student_fp32.tensorrt.iou_p5" in judged
    assert {about(row) for row in judged.values()} == {"student_fp32", "student_fp32.tensorrt"}


def test_what_int8_loses_on_held_out_images_is_a_gate() -> None:
    made: dict[str, Any] = {
        "student_int8": {"drop": 0.75, "holdout": 100},
        "student_int8-cpu": {"drop": None, "holdout": 0},
    }
    judged = {row["name"]: row for row in judge(GatesConfig(), {}, SCORED, (), made)}
    assert failures(judged.values()) == [
        "int8_drop.student_int8: 0.75, the limit is 0.5 (measured on 100)",
        "int8_drop.student_int8-cpu: not measured, only 0 images could be compared",
    ]
    assert judge(GatesConfig(int8_max_drop=None), {}, SCORED, (), made) == []


def test_the_worst_images_are_named_and_cannot_steer_the_terminal() -> None:
    judged = rows(FP32, PLAN, parity_score=0.0001, ap_drop=0.15)
    said = failures(judged.values(), {"student_fp32": ["a.png", "\x1b[2Jb.png"], "student_fp32.tensorrt": ["c.png"]})
    assert said == [
        "parity.student_fp32.score_p95: 0.001, the limit is 0.0001 (measured on 400); worst in a.png, \\x1b[2Jb.png",
        "parity.student_fp32.tensorrt.score_p95: 0.001, the limit is 0.0001 (measured on 400); worst in c.png",
        "ap_drop.student_fp32: 0.2, the limit is 0.15 (measured on 9)",
    ]


def test_a_limit_of_null_is_not_judged() -> None:
    keys = ("parity_unmatched", "parity_score", "parity_iou", "int8_unmatched", "int8_score", "int8_iou")
    assert rows(FP32, INT8, **dict.fromkeys((*keys, "ap_drop", "int8_ap_drop"))) == {}
