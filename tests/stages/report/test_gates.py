from __future__ import annotations

from typing import Any

import pytest

from pipeline.deployment import GatesConfig
from stages.artifacts import OnnxFile
from stages.report.gates import failures, judge

PARITY = {"student_fp32": {"boxes": 400, "unmatched": 0.0025, "score_p95": 0.001, "box_p95": 0.2}}
SCORED: dict[str, Any] = {
    "accuracy": [
        {"model": "student", "runtime": "torch", "precision": "fp32", "decode": "graph", "AP": 30.0, "images": 9},
        {"model": "student", "runtime": "onnxruntime", "precision": "fp32", "decode": "graph", "AP": 29.8, "images": 9},
    ],
    "gain": {"difference": 1.2, "images": 9},
}


def rows(parity: dict[str, Any] = PARITY, **limits: Any) -> dict[str, dict[str, Any]]:
    return {
        row["name"]: row
        for row in judge(GatesConfig(**limits), parity, SCORED, [OnnxFile("student", "fp32", "export")])
    }


def test_all_limits_met() -> None:
    judged = rows()
    assert set(judged) == {
        "parity.student_fp32.unmatched",
        "parity.student_fp32.score_p95",
        "parity.student_fp32.box_p95",
        "ap_drop.student_fp32",
    }
    assert all(row["passed"] for row in judged.values())
    assert judged["ap_drop.student_fp32"]["value"] == pytest.approx(0.2)
    assert failures(judged.values()) == []


def test_too_few_boxes_is_not_measured_and_so_not_passed() -> None:
    few = {"student_fp32": {**PARITY["student_fp32"], "boxes": 12}}
    judged = rows(few)
    assert not judged["parity.student_fp32.unmatched"]["passed"]
    assert judged["parity.student_fp32.unmatched"]["value"] is None
    assert "parity.student_fp32.box_p95: not measured, only 12 boxes could be compared" in failures(judged.values())


@pytest.mark.parametrize(
    ("limit", "name", "sentence"),
    [
        ({"parity_unmatched": 0.001}, "parity.student_fp32.unmatched", "0.0025, the limit is 0.001 (measured on 400)"),
        ({"parity_box": 0.1}, "parity.student_fp32.box_p95", "0.2, the limit is 0.1 (measured on 400)"),
        ({"ap_drop": 0.1}, "ap_drop.student_fp32", "0.2, the limit is 0.1 (measured on 9)"),
        ({"min_gain": 2.0}, "gain", "1.2, the limit is 2 (measured on 9)"),
    ],
)
def test_a_limit_that_is_not_met(limit: dict[str, Any], name: str, sentence: str) -> None:
    judged = rows(**limit)
    assert [row["name"] for row in judged.values() if not row["passed"]] == [name]
    assert failures(judged.values()) == [f"{name}: {sentence}"]


def test_a_limit_of_null_is_not_judged() -> None:
    judged = rows(parity_unmatched=None, parity_score=None, parity_box=None, ap_drop=None)
    assert judged == {}
