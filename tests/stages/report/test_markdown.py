from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

from stages.report.markdown import markdown, safe
from stages.report.summary import rows, sentence
from tests.stages.report.lab import NO_PICTURES, pictures, report, without_control


def test_the_control_costs_what_the_student_costs() -> None:
    by_model = {row[0]: row[1:] for row in rows(report())}
    assert by_model["control"] == ("1.00 M", "30.0", "60.0", "10.0", "12.0", "50", "4.0")
    assert by_model["student"][3:] == by_model["control"][3:]


def test_without_fp32_the_table_shows_what_was_exported() -> None:
    made = report()
    made["profiles"] = [{**profile, "precision": "fp16"} for profile in made["profiles"]]
    assert rows(made)[0][4:6] == ("10.0", "12.0")
    assert "size of the fp16 ONNX file" in markdown(made, NO_PICTURES)


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("helped", "Distillation helped: +2.5 AP against the control (95% interval +1.0 to +4.0"),
        ("hurt", "Distillation hurt: +2.5 AP"),
        ("cannot tell", "cannot be told from this run: +2.5 AP"),
        ("not shown", "was not shown: the run has no control"),
    ],
)
def test_the_verdict_in_words(verdict: str, words: str) -> None:
    assert words in sentence(report(distillation={**report()["distillation"], "verdict": verdict}))


def test_text_from_outside_cannot_become_markup() -> None:
    made = report()
    text = markdown(made, pictures("photo](http://x)<img>.png"))
    assert "<script>" not in text
    assert "<b>" not in text.replace(made["command"], "")
    assert "<img>" not in text
    assert not re.search(r"(?<!\\)\]\(http", text)
    assert "http://" not in text, "some readers make links by themselves"
    assert "a\\|b" in text


def test_the_command_can_be_copied_as_it_was() -> None:
    command = "frs-pipeline run 'my  runs_a/<x>*.yaml' --set name=```"
    assert f"\n````\n{command}\n````\n" in markdown(report(command=command), NO_PICTURES)


def test_without_control_none_is_spoken_of() -> None:
    assert "control is" not in markdown(without_control(), NO_PICTURES)
    assert "control is" in markdown(report(), NO_PICTURES)


def test_every_table_is_rectangular() -> None:
    for block in re.findall(r"(?:^\|.*\n)+", markdown(report(), NO_PICTURES), flags=re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_what_was_not_measured_is_a_dash() -> None:
    text = markdown(report(), NO_PICTURES)
    assert "| gain | ≥ 1 | – | 3 images | no |" in text
    assert "| student.plan | no engine: no &lt;b&gt;builder&lt;/b&gt; here | – | – |" in text


def test_why_a_latency_should_not_be_quoted_stands_under_the_table_once() -> None:
    made = report()
    assert "should not be quoted" not in markdown(made, NO_PICTURES)
    teacher, student = made["profiles"]
    teacher["warnings"] = ["The clocks were not locked.", "The machine throttled."]
    student["warnings"] = ["The clocks were not locked."]
    text = markdown(made, NO_PICTURES)
    assert "- The clocks were not locked.\n- The machine throttled. (teacher fp32)\n" in text
    assert text.index("should not be quoted") > text.index("| artifact | p50 ms")


def test_what_is_missing_of_some_files_says_of_which() -> None:
    made = report()
    made["profiles"][1]["missing"] = {"energy_mj": "no power rail", "power_mode": "no modes", "clocks": "no modes"}
    text = markdown(made, NO_PICTURES)
    assert "Not measured: energy (no power rail); temperature of teacher fp32 (" in text
    assert "power mode of student fp32, clocks of student fp32 (no modes)." in text


def test_the_machines_mode_and_the_rail_are_named_where_they_are_known() -> None:
    made = report()
    assert "ower mode" not in markdown(made, NO_PICTURES)
    made["profiles"][0] |= {"power_mode": "MAXN", "clocks": "locked", "energy_rail": "VDD_IN", "throttled": False}
    made["profiles"][1] |= {"power_mode": "MAXN", "clocks": "locked", "throttled": True}
    assert "Power mode MAXN, clocks locked, energy measured at VDD\\_IN, throttled. Not" in markdown(made, NO_PICTURES)


def test_an_engine_stands_beside_the_file_that_it_was_built_from() -> None:
    made = report()
    engine = {**made["profiles"][1], "runtime": "tensorrt", "threads": None, "gpu_ms": {"p50": 6.0, "p99": 7.0}}
    engine["stages_ms"] = {**engine["stages_ms"], "copy_in": 0.5, "copy_out": 0.25}
    made["profiles"].append(engine)
    text = markdown(made, NO_PICTURES)
    row = "10.0 | 9.5 to 10.5 | 11.0 | 11.5 | 12.0 | 1.0"
    assert f"| student fp32 ONNX Runtime | {row} | – | 8.0 | 1.0 | – | 100.0 |" in text
    assert f"| student fp32 TensorRT | {row} | 0.8 | 8.0 | 1.0 | 6.0 | 100.0 |" in text


def test_safe_keeps_the_words() -> None:
    assert html.unescape(safe("a <b> & `c`").replace("\\", "")) == "a <b> & `c`"


def test_every_artifact_has_a_row_and_what_nothing_ran_is_a_gap() -> None:
    text = markdown(report(), NO_PICTURES)
    assert "| student.onnx | ONNX Runtime | 32.5 | 0.00 | 0.0 | 0.062 | 0.750 | 10.0 | 50 | 4.0 | – |" in text
    assert "| student.int8.onnx | ONNX Runtime | 32.2 | 0.25 | 12.5 | 0.062 | 0.750 | – | – | 1.0 | – |" in text
    assert "| student.plan | TensorRT | – | – | – | – | – | – | – | – | no engine |" in text


def test_an_engine_that_ran_has_figures_of_its_own() -> None:
    made = report()
    made["engines"][0] |= {"proven": "executed", "size_mb": 7.5}
    made["accuracy"].append(
        {**made["accuracy"][0], "model": "student", "runtime": "tensorrt", "decode": "graph", "AP": 32.0}
    )
    made["profiles"].append({**made["profiles"][1], "runtime": "tensorrt", "peak_memory_mb": 90.0})
    made["parity"]["student_fp32.tensorrt"] = {**made["parity"]["student_fp32"], "unmatched": 0.5}
    made["gates"] = [
        {"name": f"parity.student_fp32.tensorrt.{key}", "limit": 0.1, "value": 0.5, "passed": passed, "measured_on": 9}
        for key, passed in (("unmatched", False), ("score_p95", True))
    ]
    text = markdown(made, NO_PICTURES)
    assert "| student.plan | TensorRT | 32.0 | 0.50 | 50.0 | 0.062 | 0.750 | 10.0 | 90 | 7.5 | 1 of 2 |" in text
    assert "| student.onnx | ONNX Runtime | 32.5 | 0.00 | 0.0 |" in text


def test_what_int8_costs_and_keeps() -> None:
    text = markdown(report(), NO_PICTURES)
    assert "| student int8 | 0.25 | 0.50 | 10 | 3 | 1 | 0 |" in text
    assert "| layers |  | AP lost, int8 | kept, int8 |" in text
    assert "| stem | 1 | 1.25 | 1 |" in text
    assert "| head | 2 | −0.50 | 0 |" in text
    assert "student int8 keeps stem in higher precision." in text
    assert "Validation AP is not what was tuned on" in text


def test_layers_that_were_ranked_by_noise_show_it() -> None:
    made = report()
    found = made["quantization"]["student_int8"]["sensitivity"]
    found["by"] = "sqnr"
    for group in found["groups"]:
        group["drop"] = None
    text = markdown(made, NO_PICTURES)
    assert "| layers |  | SQNR dB, int8 | kept, int8 |" in text
    assert "| stem | 1 | 9.5 | 1 |" in text


def test_a_variant_that_took_anothers_measurement_has_no_column_for_it() -> None:
    made = report()
    made["quantization"]["student_int8+fp16"] = {**made["quantization"]["student_int8"], "kept": []}
    text = markdown(made, NO_PICTURES)
    assert "| layers |  | AP lost, int8 | kept, int8 | kept, int8+fp16 |" in text


def test_without_int8_nothing_is_said_of_it() -> None:
    assert "int8 costs" not in markdown(report(quantization={}), NO_PICTURES)


def test_a_failed_gate_names_the_worst_images_and_shows_them() -> None:
    gate = {"name": "parity.student_int8.unmatched", "limit": 0.1, "value": 0.125, "passed": False, "measured_on": 400}
    shown = replace(NO_PICTURES, disagreements={"student_int8": (pictures("photo](http://x)<img>.png").maps[0],)})
    text = markdown(report(gates=[gate]), shown)
    assert (
        "- parity.student\\_int8.unmatched: 0.125, the limit is 0.1 (measured on 400); worst in &lt;script&gt;" in text
    )
    assert "](pictures/1.png)" in text.partition("## Accuracy")[0]
    assert "http://" not in text
    assert "<img>" not in text
