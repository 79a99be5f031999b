from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StageFailed
from pipeline.stage import Context
from pipeline.store import Store
from tests.pipeline.lab import Lab


def actions(lab: Lab, **options: Any) -> list[str]:
    return [step.action for step in lab.plan(**options).values()]


def test_a_plan_of_nothing_writes_nothing(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    steps = lab.plan()
    assert [(step.action, step.reasons) for step in steps.values()] == [
        ("run", ("never run",)),
        ("depends", ("after data",)),
        ("depends", ("after teacher",)),
    ]
    assert not lab.runs.exists()


def test_a_finished_run_is_reused(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    assert actions(lab) == ["reuse"] * 3
    assert actions(lab, name="two") == ["reuse"] * 3
    assert actions(lab, until="teacher") == ["reuse"] * 2


def test_force_is_a_reason(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    steps = lab.plan(force=["data", "export"])
    assert steps["data"].reasons == ("forced",)
    assert (steps["export"].action, steps["export"].reasons) == ("depends", ("forced", "after teacher"))


def test_every_change_is_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    lab.values["export"] = {"precisions": ["fp32"], "opset": 18}
    assert lab.plan()["export"].reasons == (
        "config export.opset: unset -> 18",
        'config export.precisions: ["fp32","fp16"] -> ["fp32"]',
        "config export.batch: 1 -> unset",
    )
    lab.torch, lab.version = "2.14", 2
    steps = lab.plan()
    assert steps["teacher"].reasons == ("the stage's code 1 -> 2", "torch 2.13 -> 2.14")
    assert steps["export"].action == "depends"
    assert steps["export"].reasons[0] == "after teacher"
    lab.annotations.write_text("other")
    assert lab.plan()["data"].reasons == ("file data.annotations changed",)


def test_a_changed_number_of_epochs_starts_anew(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    lab.values["teacher"]["train"]["epochs"] = 12
    assert lab.plan()["teacher"].reasons == (
        "config teacher.train.epochs: 10 -> 12",
        "another number of epochs is another training: it starts anew",
    )


def test_a_changed_input_is_named_by_its_source(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run("one")
    lab.values["teacher"]["train"]["lr"] = 0.2
    lab.run("two", until="teacher")
    step = lab.plan("one")["export"]
    assert (step.action, step.reasons) == ("run", ("input teacher/weights changed",))


def test_inputs_and_files_that_come_and_go_are_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    data, teacher, export = lab.graph()
    more = {"weights": "teacher/weights", "table": "data/table"}
    wide = dataclasses.replace(export, inputs=more, external=lambda _: {"extra": lab.annotations})
    lab.run(graph=(data, teacher, wide))
    assert "input data/table is new; file extra is new" in lab.text
    assert lab.plan()["export"].action == "reuse"
    other = dataclasses.replace(export, reads=())
    assert lab.plan(graph=(data, teacher, other))["export"].reasons[-2:] == (
        "input table is no longer read",
        "file extra is no longer read",
    )


def test_of_many_changed_files_the_first_are_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    images = [tmp_path / f"{i}.jpg" for i in range(10)]
    for image in images:
        image.write_text("old")
    data, teacher, export = lab.graph()
    graph = (dataclasses.replace(data, external=lambda _: {path.name: path for path in images}), teacher, export)
    lab.run(graph=graph)
    for image in images:
        image.write_text("new")
    reasons = lab.plan(graph=graph)["data"].reasons
    assert reasons == (*(f"file {i}.jpg changed" for i in range(6)), "and 4 more")


def test_damage_and_loss_are_named(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    entry = lab.entries("teacher")[0]
    (entry / "outputs" / "weights.bin").write_text("x")
    assert lab.plan()["teacher"].reasons == ("output weights is damaged",)
    (entry / "outputs" / "weights.bin").unlink()
    assert lab.plan()["teacher"].reasons == ("output weights is missing",)
    (entry / "entry.json").write_text("x")
    assert lab.plan("another")["teacher"].reasons == ("entry.json is damaged",)


def test_another_run_is_compared_with_the_newest_entry(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run("one")
    lab.values["export"]["batch"] = 4
    assert lab.plan("two")["export"].reasons == ("config export.batch: 1 -> 4",)


def test_an_interrupted_attempt_is_announced(tmp_path: Path) -> None:
    lab = Lab(tmp_path)

    def fail(context: Context) -> None:
        raise RuntimeError

    lab.hooks["teacher"] = fail
    with pytest.raises(StageFailed):
        lab.run()
    assert lab.plan()["teacher"].reasons == ("never run", "continues an interrupted attempt")
    assert lab.plan(force=["teacher"])["teacher"].reasons == ("forced",)


def test_the_plan_is_what_the_run_does(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.run()
    lab.values["export"]["batch"] = 4
    step = lab.plan()["export"]
    lab.run()
    assert f"[3/3] export: starts ({step.reasons[0]})" in lab.text
    assert lab.entries("export")[0].parent == Store(lab.runs).root / "export"
    assert step.fingerprint in {path.name for path in lab.entries("export")}
