from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from frs.errors import FrsError
from stages.report import show
from tests.stages.report.lab import report, without_control


def folder(root: Path, name: str, document: dict[str, Any]) -> Path:
    made = root / name
    made.mkdir()
    (made / "report.json").write_text(json.dumps({**document, "name": name}))
    return made


def shown(*folders: Path) -> str:
    file = io.StringIO()
    Console(file=file, width=160, color_system=None).print(show(folders))
    return file.getvalue()


def line(text: str, first: str) -> list[str]:
    """The cells of the row that begins so."""
    found = next(row for row in text.splitlines() if row.strip("│┃ ").startswith(first))
    return [cell.strip() for cell in found.strip("│┃ ").replace("┃", "│").split("│")]


def test_runs_stand_in_rows_and_what_they_differ_in_below(tmp_path: Path) -> None:
    other = report()
    other["config"] = {"name": "b", "input": {"height": 96, "width": 64}, "distill": {"alpha": 0.5}}
    text = shown(folder(tmp_path, "a", report()), folder(tmp_path, "b", other))
    assert line(text, "a ") == ["a", "40.0", "30.0", "32.5", "+2.5", "+1.0 to +4.0", "1.00 M", "10.0", "4.0", "0 of 1"]
    assert line(text, "what differs") == ["what differs", "a", "b"]
    assert line(text, "input.height") == ["input.height", "64", "96"]
    assert line(text, "distill.alpha") == ["distill.alpha", "auto", "0.5"]
    assert "input.width" not in text
    assert "cannot be compared" not in text


def test_a_run_without_control_has_no_gain(tmp_path: Path) -> None:
    text = shown(folder(tmp_path, "a", report()), folder(tmp_path, "b", without_control()))
    assert line(text, "b ")[1:6] == ["40.0", "–", "32.5", "–", "–"]
    assert "They differ in nothing." in text


def test_figures_of_other_images_or_another_machine_are_not_compared_in_silence(tmp_path: Path) -> None:
    other = report()
    other["data"]["val"]["sha256"] = "e" * 64
    other["environment"]["machine"]["cpu"] = "A slow CPU"
    text = shown(folder(tmp_path, "a", report()), folder(tmp_path, "b", other))
    assert "Not scored on the same validation images: their APs cannot be compared." in text
    assert "b: A slow CPU, fp32, 2 threads" in text


def test_what_is_not_in_the_configuration_may_differ_too(tmp_path: Path) -> None:
    other = report(commit="0123abc")
    other["data"]["train"]["sha256"] = "e" * 64
    other["environment"]["machine"]["gpu"] = "A GPU"
    text = shown(folder(tmp_path, "a", report()), folder(tmp_path, "b", other))
    assert line(text, "commit") == ["commit", "–", "0123abc"]
    assert line(text, "data.train") == ["data.train (sha256)", "d" * 12, "e" * 12]
    assert line(text, "machine.gpu") == ["machine.gpu", "–", "A GPU"]
    assert "data.val" not in text


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    folders = []
    for root in ("one", "two"):
        (tmp_path / root).mkdir()
        folders.append(folder(tmp_path / root, "a", report()))
    text = shown(*folders)
    for place in folders:
        assert place.parent.name in text


@pytest.mark.parametrize("count", [1, 2])
def test_a_name_from_a_file_cannot_steer_the_terminal(tmp_path: Path, count: int) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report(name="\x1b[2Jx")))
    text = shown(*[tmp_path] * count)
    assert "\x1b" not in text


def test_values_from_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    other = report()
    other["config"]["input"]["height"] = "\x1b[2J[red]x"
    text = shown(folder(tmp_path, "a", report()), folder(tmp_path, "b", other))
    assert "\x1b" not in text
    assert "[red]x" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no report; finish the run with `frs-pipeline run`"),
        ("{", "is damaged or was written by another version"),
        ("[]", "is damaged or was written by another version"),
        (json.dumps({"schema": 1}), "give the run's command again"),
        (json.dumps({**report(), "profiles": []}), "give the run's command again"),
        (json.dumps({**report(), "schema": 2}), "has schema 2, this version reads 1"),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_a_report_that_cannot_be_read(tmp_path: Path, content: str | None, said: str, number: int) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(FrsError, match=said) as error:
        show([tmp_path] * number)
    assert str(tmp_path / "report.json") in str(error.value)
