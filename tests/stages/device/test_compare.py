from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from frs.errors import FrsError
from stages.device.compare import show_devices
from tests.stages.device.lab import device
from tests.stages.report.browser import CHROMIUM, visit
from tests.stages.report.lab import HOSTILE, report


def make(tmp_path: Path, **devices: dict[str, Any]) -> Path:
    made = report()
    made["environment"]["machine"]["gpu"] = None
    (tmp_path / "report.json").write_text(json.dumps(made))
    for name, document in devices.items():
        path = tmp_path / "devices" / name / "device.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(document))
    return tmp_path


def shown(run_dir: Path) -> str:
    file = io.StringIO()
    drawn = show_devices(run_dir)
    assert drawn is not None
    Console(file=file, width=160, color_system=None).print(drawn)
    return file.getvalue()


def lines(text: str) -> list[list[str]]:
    """The cells of every row."""
    rows = [line[1:-1].replace("┃", "│") for line in text.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in row.split("│")] for row in rows]


def fast(runtime: str = "onnxruntime", **changes: Any) -> dict[str, Any]:
    """A device on which the student's file runs in this runtime too, and in a fifth of the time."""
    made = device()
    profile = {**made["profiles"][-1], "runtime": runtime, "latency_ms": {"p50": 2.0, "p99": 2.4}, "energy_mj": 7.0}
    fp32 = next(row for row in made["accuracy"] if (row["model"], row["runtime"]) == ("student", "onnxruntime"))
    score = {**fp32, "runtime": runtime, "AP": 32.0}
    return {**made, "profiles": [profile], "accuracy": [score], **changes}


def test_artifacts_in_rows_and_machines_in_columns(tmp_path: Path) -> None:
    rows = lines(shown(make(tmp_path, jetson=fast("tensorrt"), pi=device())))
    assert rows[0] == ["", "this machine", "jetson", "pi"]
    assert ["device", "A *fast* CPU", "A board", "A board"] in rows
    latency = rows[rows.index(["latency p50 / p99, ms", "", "", ""]) + 1 :][:3]
    assert latency == [
        ["teacher fp32, ONNX Runtime", "10.0 / 12.0", "–", "10.0 / 12.0"],
        ["student fp32, ONNX Runtime", "10.0 / 12.0", "–", "10.0 / 12.0"],
        ["student fp32, TensorRT", "–", "2.0 / 2.4", "–"],
    ]
    ap = rows[rows.index(["AP of the file", "", "", ""]) + 1 :]
    assert ["student fp32, ONNX Runtime", "32.5", "–", "32.5"] in ap
    assert ["student fp32, TensorRT", "–", "32.0", "–"] in ap
    assert rows[-1] == ["student fp32, TensorRT", "–", "7.0", "–"], "energy"


def test_what_nobody_measured_is_said_once(tmp_path: Path) -> None:
    assert "Nowhere measured: GPU memory, energy." in shown(make(tmp_path, pi=device()))


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    few = [{**row, "images": 200} for row in device()["accuracy"]]
    other = [{"model": "student", "kind": "fp32", "file": "student.onnx", "bytes": 1, "sha256": "c" * 64}]
    warned = [{**device()["profiles"][0], "warnings": ["Clocks are not locked."]}]
    text = shown(make(tmp_path, few=device(accuracy=few), other=device(files=other), warned=device(profiles=warned)))
    assert "Not scored on the same images: APs of different columns cannot be compared." in text
    assert "other: measured with other files than this report's; push to it again." in text
    assert "few: measured" not in text
    assert "! Times of warned that are not to be quoted: Clocks are not locked." in text
    assert "10.0 / 12.0 !" in text


def test_a_device_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    text = shown(make(tmp_path, pi=device(), odd=device(schema=3)))
    assert lines(text)[0] == ["", "this machine", "pi"]
    words = " ".join(text.split())  # lines are broken wherever the path is long
    assert "damaged or was written by another version (ValueError: schema 3" in words


def test_a_run_without_devices_shows_none(tmp_path: Path) -> None:
    assert show_devices(make(tmp_path)) is None
    assert not (tmp_path / "devices.html").exists()


def test_a_run_whose_report_is_missing(tmp_path: Path) -> None:
    (make(tmp_path, pi=device()) / "report.json").unlink()
    with pytest.raises(FrsError, match="there is no report; finish the run"):
        show_devices(tmp_path)


def hostile(tmp_path: Path) -> Path:
    words = "\x1b[2J[red]" + HOSTILE
    made = device(device=words, created=words)
    made["profiles"] = [
        {**made["profiles"][0], "model": words, "precision": words, "warnings": [words], "power_mode": words}
    ]
    return make(tmp_path, **{"a&b<i>": made})


def test_words_of_a_device_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = shown(hostile(tmp_path))
    assert "\x1b" not in text
    assert "[red]" in text


def test_the_page_says_the_same_and_no_word_becomes_markup(tmp_path: Path) -> None:
    shown(hostile(tmp_path))
    page = (tmp_path / "devices.html").read_text()
    assert "<script" not in page
    assert "<i>" not in page
    body = html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<body>") :]))
    assert HOSTILE in body
    assert "10.0 / 12.0 !" in body


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")
def test_a_browser_opens_the_page_in_silence(tmp_path: Path) -> None:
    shown(hostile(tmp_path))
    seen = visit(tmp_path / "devices.html", tmp_path)
    assert seen.console == []
    assert seen.requests == []
    assert "Latency p50 / p99, ms" in seen.dom
