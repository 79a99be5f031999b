"""What would spoil a training is said before the first one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages.conftest import SMALL, frs_pipeline


def stages(folder: Path) -> set[str]:
    return set(json.loads((folder / "manifest.json").read_text())["stages"])


def test_a_run_looks_before_it_trains(workplace: Path, finished: Path) -> None:
    text = (workplace / "stdout.txt").read_text()
    assert text.index("preflight: done") < text.index("teacher: starts")
    rows = {row["what"]: row for row in json.loads((finished / "preflight.json").read_text())}
    assert {"teacher", "student", "classes", "student's step", "gradients", "time", "memory", "disk"} <= set(rows)
    assert {row["verdict"] for row in rows.values()} == {"ok"}
    assert "teacher's AP" not in rows  # there is no teacher yet
    assert "4 steps" in rows["time"]["found"]  # 2 epochs of 8 images in batches of 4


def test_check_has_it_alone(workplace: Path, tmp_path: Path) -> None:
    done = frs_pipeline("check", SMALL, "--preflight", "--runs-dir", tmp_path, cwd=workplace)
    assert "ok       gradients" in done.stdout
    assert stages(tmp_path / "small") == {"data", "preflight"}
    ranks = frs_pipeline(
        "check", SMALL, "--preflight", "--runs-dir", tmp_path, "--set", "student.train.devices=2", cwd=workplace
    )
    assert "(the first of 2 processes)" in ranks.stdout
    without = frs_pipeline("check", SMALL, cwd=workplace)
    assert "gradients" not in without.stdout


@pytest.fixture
def given(finished: Path, tmp_path: Path) -> Path:
    """The finished run's teacher, in a folder of its own."""
    path = tmp_path / "given.safetensors"
    path.write_bytes((finished / "teacher.safetensors").read_bytes())
    return path


def test_a_given_teachers_ap_is_measured(workplace: Path, finished: Path, given: Path, tmp_path: Path) -> None:
    done = frs_pipeline(
        "check", SMALL, "--preflight", "--runs-dir", tmp_path, "--set", f"teacher.checkpoint={given}", cwd=workplace
    )
    accuracy = json.loads((finished / "report.json").read_text())["accuracy"]
    expected = next(row["AP"] for row in accuracy if row["model"] == "teacher" and row["decode"] == "reference")
    line = next(line for line in done.stdout.splitlines() if "teacher's AP" in line)
    assert f"  {expected:.1f} (95% " in line
    assert "on 8 validation images" in line


def test_a_teacher_that_is_not_what_it_should_be_stops_the_run(workplace: Path, given: Path, tmp_path: Path) -> None:
    options = ("--set", f"teacher.checkpoint={given}", "--set", "preflight.teacher_ap=99")
    done = frs_pipeline("run", SMALL, "--runs-dir", tmp_path, *options, cwd=workplace, check=False)
    assert done.returncode == 1
    assert "but preflight.teacher_ap is 99: the weights, the classes' order" in done.stderr
    assert "Traceback" not in done.stderr
    assert stages(tmp_path / "small") == {"data"}
