from __future__ import annotations

import html
import re
from typing import Any

import pytest

from stages.markdown import markdown, safe
from stages.summary import rows, sentence


def report(**changes: Any) -> dict[str, Any]:
    accuracy = [
        {"model": model, "runtime": "torch", "precision": "fp32", "decode": "reference", "images": 20, "AP": ap}
        | {
            "AP50": 2 * ap,
            "AP75": ap / 2,
            "APs": None,
            "APm": ap,
            "APl": ap,
            "per_class": {"<script>": ap, "a|b": None},
        }
        for model, ap in (("teacher", 40.0), ("control", 30.0), ("student", 32.5))
    ]
    profile = {
        "precision": "fp32",
        "batch": 1,
        "threads": 2,
        "latency_ms": {"p50": 10.0, "p90": 11.0, "p99": 12.0, "runs": 200},
        "stages_ms": {"preprocess": 1.0, "infer": 8.0, "postprocess": 1.0},
        "throughput_ips": 100.0,
        "peak_memory_mb": 50.0,
        "artifact_mb": 4.0,
    }
    made: dict[str, Any] = {
        "name": "a_run",
        "seed": 0,
        "created": "2026-01-01T00:00:00+00:00",
        "environment": {"machine": {"cpu": "A *fast* CPU"}, "packages": {"torch": "2.14.1"}},
        "classes": ["<script>", "a|b"],
        "models": {"teacher": {"params": 5e6}, "control": {"params": 1e6}, "student": {"params": 1e6}},
        "distillation": {"method": "frs", "alpha": 1e-4, "beta": 0.1, "chosen": "auto", "gain_AP": 2.5}
        | {"gain_interval": [1.0, 4.0], "verdict": "helped"},
        "accuracy": accuracy,
        "profiles": [{"model": "teacher", **profile}, {"model": "student", **profile}],
        "engines": [
            {"model": "student", "precision": "fp32", "builder": None, "version": None, "target": None}
            | {"size_mb": None, "proven": "failed", "message": "no <b>builder</b>\nhere"}
        ],
        "gates": [{"name": "gain", "limit": 1.0, "value": None, "passed": False, "measured_on": 3}],
    }
    return {**made, **changes}


def test_the_control_costs_what_the_student_costs() -> None:
    by_model = {row[0]: row[1:] for row in rows(report())}
    assert by_model["control"] == ("1.00 M", "30.0", "60.0", "10.0", "12.0", "50", "4.0")
    assert by_model["student"][3:] == by_model["control"][3:]


def test_without_fp32_the_table_shows_what_was_exported() -> None:
    made = report()
    made["profiles"] = [{**profile, "precision": "fp16"} for profile in made["profiles"]]
    assert rows(made)[0][4:6] == ("10.0", "12.0")
    assert "size of the fp16 ONNX file" in markdown(made, [])


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("helped", "Distillation helped: +2.5 AP over the control (95% interval +1.0 to +4.0"),
        ("hurt", "Distillation hurt: +2.5 AP"),
        ("cannot tell", "cannot be told from this run: +2.5 AP"),
        ("not shown", "was not shown: the run has no control"),
    ],
)
def test_the_verdict_in_words(verdict: str, words: str) -> None:
    assert words in sentence(report(distillation={**report()["distillation"], "verdict": verdict}))


def test_text_from_outside_cannot_become_markup() -> None:
    text = markdown(report(), [("pictures/1.png", "photo](http://x)<img>.png")])
    assert "<script>" not in text
    assert "<b>" not in text
    assert "<img>" not in text
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert "a\\|b" in text


def test_every_table_is_rectangular() -> None:
    for block in re.findall(r"(?:^\|.*\n)+", markdown(report(), []), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_what_was_not_measured_is_a_dash() -> None:
    text = markdown(report(), [])
    assert "| gain | 1 | – | 3 | **no** |" in text
    assert "| student | fp32 | – | – | – | failed: no &lt;b&gt;builder&lt;/b&gt; here |" in text


def test_safe_keeps_the_words() -> None:
    assert html.unescape(safe("a <b> & `c`").replace("\\", "")) == "a <b> & `c`"
