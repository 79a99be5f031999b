"""The study on drawn rectangles: what it trains, that it goes on where it stopped, and its statistics by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import study
from benchmarks.study_data import Split, StudyData
from benchmarks.study_images import gain, matches
from benchmarks.study_plan import CHOICES, CONTROL, FRS, MAIN, STUDIES, TEACHER, Method, Study
from benchmarks.study_rows import Job
from benchmarks.study_tables import Difference, lines, markdown, markdown_parts
from frs.edge.files import sha256_of
from tests.frs.training.conftest import draw_rectangles

CONFIGURATION = """
version: 1
name: rectangles
data:
  source: coco
  train: {annotations: -, images: -}
  val: {annotations: -, images: -}
input: {height: 64, width: 64}
teacher:
  detector: &detector
    {backbone: resnet18, backbone_options: {channels: [8, 8, 8, 8], stem_width: 8}, fpn_channels: 8, levels: 3, head_depth: 0}
  train: &train {epochs: 2, batch: 2, precision: fp32}
student: {detector: *detector, train: *train}
distill: {auto_steps: 2, warmup_steps: 1}
runtime: {device: cpu, threads: 1}
"""
AS_LONG = Method("as-long", "control", 1, "as long as FRS", as_long_as="frs")
SMALL = Study("small", ("val", "test"), "control", (TEACHER, replace(CONTROL, seeds=2), replace(FRS, seeds=1), AS_LONG))


@pytest.fixture
def data(tmp_path: Path) -> StudyData:
    """Six images to train on; `val` and `test` are the same four others."""
    splits = {}
    for name, count in (("train", 6), ("val", 4)):
        (tmp_path / name).mkdir()
        draw_rectangles(tmp_path / name, count)
        splits[name] = Split(tmp_path / name / "annotations.json", tmp_path / name / "images")
    for image in (tmp_path / "val" / "images").iterdir():  # the same generator drew the same pictures
        Image.open(image).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(image)
    (tmp_path / "rectangles.yaml").write_text(CONFIGURATION)
    return StudyData("rectangles", tmp_path / "rectangles.yaml", 64, 64, splits["train"], splits["val"], splits["val"])


def test_what_is_missing_is_trained_and_nothing_else(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    runs, results = tmp_path / "runs", tmp_path / "small.jsonl"
    begun = replace(SMALL, methods=(TEACHER, replace(CONTROL, seeds=1)))
    assert study.run_study(begun, [data], runs, jobs=2) == 0
    first = results.read_text()
    assert study.run_study(SMALL, [data], runs, jobs=2) == 0
    text = results.read_text()
    assert text.startswith(first)
    rows = [json.loads(line) for line in text.splitlines()]
    expected = [("teacher", 0), ("control", 0), ("control", 1), ("frs", 0), ("as-long", 0)]
    assert sorted((row["method"], row["seed"], row["split"]) for row in rows) == sorted(
        (*each, split) for each in expected for split in ("val", "test")
    )
    found = {(row["method"], row["seed"]): row for row in rows if row["split"] == "test"}
    check_rows(found, runs)
    assert study.run_study(SMALL, [data], runs, jobs=2) == 0
    assert results.read_text() == text
    control, frs = (matches(SMALL, name, data, "test", runs) for name in ("control", "frs"))
    assert gain(control, frs).startswith(f"{found['frs', 0]['AP'] - found['control', 0]['AP']:+.1f} [")
    results.write_text(text.replace(found["frs", 0]["weights"], 64 * "0"))
    with pytest.raises(SystemExit, match=r"rectangles\.frs\.0: .* are not those of the row"):
        matches(SMALL, "frs", data, "test", runs)


def check_rows(found: dict[tuple[str, int], Any], runs: Path) -> None:
    teacher, student = found["teacher", 0], found["frs", 0]
    assert student["teacher"] == teacher["weights"] == sha256_of(runs / "rectangles.teacher.0" / "teacher.safetensors")
    assert teacher["teacher"] is found["control", 0]["teacher"] is None
    assert found["control", 0]["weights"] != found["control", 1]["weights"]
    assert all(row["epochs"] == 2 and row["steps"] == 6 for row in (teacher, student))
    time = student["seconds"] / (found["control", 0]["seconds"] + found["control", 1]["seconds"]) * 2
    assert found["as-long", 0]["epochs"] == round(2 * time)
    assert f"student.train.epochs={round(2 * time)}" in found["as-long", 0]["overrides"]
    assert {"alpha", "beta"} <= student["weights_in_force"].keys()


def test_settings_are_of_what_is_trained_and_of_nothing_else(data: StudyData) -> None:
    control = Job(data, CONTROL, 0).settings
    assert Job(data, replace(CONTROL, name="another"), 0).settings == control
    assert Job(data, CONTROL, 1).settings != control
    assert Job(data, CONTROL, 0, epochs=3).settings != control
    twice = Job(data, Method("twice", "control", 1, "twice", times=2), 0)
    assert twice.config().student.train.epochs == 4
    assert twice.settings == Job(data, CONTROL, 0, epochs=4).settings
    taught = Method("x", "control", 1, "x", ("distill.alpha=1.0",))
    assert Job(data, taught, 0).settings == control, "a control is not distilled"
    assert Job(data, replace(taught, stage="student"), 0).settings != Job(data, FRS, 0).settings


def test_a_failed_training_is_told_and_the_others_go_on(
    data: StudyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    impossible = Method("impossible", "control", 1, "more than there is", ("student.train.batch=100",))
    tried = replace(SMALL, methods=(TEACHER, impossible, replace(CONTROL, seeds=1)))
    assert study.run_study(tried, [data], tmp_path / "runs", jobs=2) == 1
    assert "rectangles.impossible.0: " in capsys.readouterr().err
    assert {row["method"] for row in study.read_rows(SMALL)} == {"teacher", "control"}


def test_a_study_of_options_that_are_gone_names_the_commit_that_has_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["study", "run", "choices"])
    with pytest.raises(SystemExit) as caught:
        study.main()
    assert caught.value.code == 2
    assert f"check out {CHOICES.commit} and run it there" in capsys.readouterr().err


@pytest.mark.parametrize("plan", [plan for plan in STUDIES.values() if plan.commit is None], ids=lambda plan: plan.name)
def test_every_method_is_one_that_the_configuration_allows(plan: Study) -> None:
    folder = Path(study.__file__).parent
    split = Split(Path("a.json"), Path("a"))
    names = [method.name for method in plan.methods]
    assert len(set(names)) == len(names)
    assert plan.reference in names
    for name in ("bccd", "cards"):
        data = StudyData(name, folder / f"study_{name}.yaml", 64, 64, split, split, split)
        for method in plan.methods:
            config = Job(data, method, 3).config()
            assert config.seed == 3
            assert config.runtime.threads == 1


def row(method: str, seed: int, ap: float, split: str = "test") -> dict[str, Any]:
    return {
        "dataset": "set", "method": method, "seed": seed, "split": split, "AP": ap, "AP50": 2 * ap, "images": 9, "epochs": 4,
        "seconds": 90.0,
    }  # fmt: skip


def test_the_paired_difference_and_its_interval_by_hand() -> None:
    # Of 1, 2, 3: mean 2, standard deviation 1; Student's t with two degrees of freedom is 4.303 at 97.5%.
    found = Difference.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.interval is not None
    assert found.interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-3)
    assert str(found) == "+2.0 [-0.5, +4.5]"
    assert str(Difference.of([1.5])) == "+1.5"


def test_a_method_is_compared_seed_by_seed_with_the_reference() -> None:
    rows = [
        row("teacher", 0, 50.0),
        *(row("control", seed, ap) for seed, ap in enumerate((40.0, 30.0, 44.0))),
        *(row("frs", seed, ap) for seed, ap in enumerate((43.0, 35.0))),
        row("frs", 0, 99.0, split="val"),
    ]
    teacher, control, frs = lines(rows, MAIN, "set", "test")
    assert teacher.difference is control.difference is None
    assert control.AP == "38.0 ± 7.2"  # 2, -8 and 6 from the mean: 104 / 2 is 52
    assert frs.AP == "39.0 ± 5.7"
    assert frs.difference == Difference.of([3.0, 5.0])
    table = markdown(rows, MAIN, "test")
    assert "| FRS | 2 | 4 | 1.5 | 39.0 ± 5.7 | 78.0 | +4.0 [-8.7, +16.7] |" in table
    assert "**set**, test, 9 images" in table


def test_the_parts_are_means_over_the_seeds_and_what_is_in_no_seed_is_empty() -> None:
    def with_parts(seed: int, small: float | None, medium: float, red: float) -> dict[str, Any]:
        return {**row("frs", seed, 40.0), "APs": small, "APm": medium, "APl": 50.0, "per_class": {"red|green": red}}

    table = markdown_parts([with_parts(0, None, 20.0, 10.0), with_parts(1, None, 30.0, 40.0)], MAIN, "test")
    assert table.splitlines() == [
        "**set**, test",
        "",
        "| | small | medium | large | red\\|green |",
        "|---|---|---|---|---|",
        "| FRS |  | 25.0 | 50.0 | 25.0 |",
    ]
