"""A teacher's checkpoint or a backbone's weights that cannot be used: what `run` and `check` say."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from frs.detectors import RetinaNetSpec, build_detector, save_detector
from tests.bad_input.conftest import Place, call

SPEC = RetinaNetSpec(
    classes=("rectangle",),
    category_ids=(7,),
    backbone="resnet18",
    backbone_options={"channels": [8, 16, 24, 32], "stem_width": 8},
    fpn_channels=16,
    levels=3,
    head_depth=1,
)
DETECTOR = {
    "backbone": SPEC.backbone, "backbone_options": SPEC.backbone_options, "fpn_channels": 16, "levels": 3, "head_depth": 1,
}  # fmt: skip


@pytest.fixture
def small(place: Place) -> Place:
    """mine.yaml with a teacher that is given as t.safetensors, and a student whose backbone's weights may be set."""
    teacher = {"detector": DETECTOR, "checkpoint": "t.safetensors"}
    place.configure(teacher=teacher, student={"detector": DETECTOR, "train": {"epochs": 1, "batch": 2}})
    return place


def refused(place: Place, where: str, *more: str) -> str:
    """What `run` says of the file, which is what `check` says under `where`."""
    said = place.refuses("run", "mine.yaml", "--until", "preflight", *more)
    found = call("check", "mine.yaml", *more)
    assert found.exit_code == 1
    sentence = said.removeprefix("stage preflight: ")
    assert f"FAULT    {where}: {sentence}\n" in found.stdout.replace(f"{place.folder}/", "")
    return sentence


def write_teacher(path: Path, spec: RetinaNetSpec = SPEC, change: Callable[[Any], None] | None = None) -> None:
    detector = build_detector(spec)
    if change is not None:
        change(detector)
    save_detector(path, detector)


def spoil(detector: Any) -> None:
    detector.class_output.bias.data[0] = float("nan")


def test_a_teacher_that_fits_is_taken(small: Place) -> None:
    write_teacher(small.folder / "t.safetensors")
    small.accepts("run", "mine.yaml", "--until", "teacher", "--set", "distill.auto_steps=1")
    assert "t.safetensors: resnet18, 1 classes" in small.accepts("check", "mine.yaml")


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            replace(SPEC, classes=("tree",)),
            "the detector's classes are tree, the wanted ones rectangle; rectangle of these is not among those",
        ),
        (
            replace(SPEC, octaves=2),
            "the teacher has 6 anchors at a place, student.detector has 9; FRS compares them place by place, so give the "
            "student the teacher's",
        ),
        (
            replace(SPEC, levels=4),
            "the teacher has 4 levels, student.detector has 3; FRS compares them place by place, so give the student the "
            "teacher's",
        ),
        (
            replace(SPEC, fpn_channels=24),
            "the checkpoint's fpn_channels is 24, teacher.detector.fpn_channels is 16; correct that, or leave "
            "teacher.detector out, which the checkpoint says by itself",
        ),
    ],
    ids=["classes", "octaves", "levels", "the section"],
)
def test_a_teacher_of_something_else(small: Place, spec: RetinaNetSpec, sentence: str) -> None:
    write_teacher(small.folder / "t.safetensors", spec)
    assert refused(small, "teacher.checkpoint") == f"t.safetensors: {sentence}"


def test_a_teacher_with_numbers_that_are_none(small: Place) -> None:
    write_teacher(small.folder / "t.safetensors", change=spoil)
    assert refused(small, "teacher.checkpoint") == (
        "t.safetensors: 1 tensor holds NaN or infinity (first: class_output.bias); the training that wrote it diverged, so "
        "give another"
    )


def test_a_teacher_that_is_not_there(small: Place) -> None:
    said = small.refuses("run", "mine.yaml", "--until", "teacher", code=2)
    assert said == (
        "stage preflight reads teacher.checkpoint, and there is no t.safetensors; put the file there or correct the "
        "configuration."
    )
    assert "FAULT    teacher.checkpoint: " in call("check", "mine.yaml").stdout


def truncate(path: Path) -> None:
    write_teacher(path)
    path.write_bytes(path.read_bytes()[:-100])


def words(path: Path) -> None:
    path.write_text("no weights at all")


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("write", [truncate, words, folder], ids=["truncated", "words", "folder"])
def test_a_teacher_that_is_no_safetensors_file(small: Place, write: Callable[[Path], None]) -> None:
    write(small.folder / "t.safetensors")
    said = refused(small, "teacher.checkpoint")
    assert said.startswith("t.safetensors: not a whole safetensors file (")
    assert said.endswith("); give one that a run wrote, or train it again")


def test_plain_tensors_are_no_teacher(small: Place) -> None:
    save_file({"weight": torch.zeros(3)}, small.folder / "t.safetensors")
    assert refused(small, "teacher.checkpoint") == (
        "t.safetensors: a safetensors file, but not one of a detector (no frs.detector in its metadata); give a file that a "
        "run wrote, such as teacher.safetensors"
    )


def test_a_teacher_whose_tensors_are_of_another_network(small: Place) -> None:
    path = small.folder / "t.safetensors"
    write_teacher(path)
    tensors = load_file(path)
    tensors["class_output.bias"] = torch.zeros(5)
    del tensors["box_output.bias"]
    save_file(tensors, path, metadata={"frs.detector": SPEC.to_json()})
    assert refused(small, "teacher.checkpoint") == (
        "t.safetensors: the weights are of another network: 1 missing (box_output.bias); 1 of another shape "
        "(class_output.bias (5,) for (9,)); give those of this one"
    )


def test_a_teacher_that_would_fetch_its_backbone(small: Place) -> None:
    text = replace(SPEC, backbone="hf-hub:somebody/something").to_json()
    save_file({"weight": torch.zeros(3)}, small.folder / "t.safetensors", metadata={"frs.detector": text})
    said = refused(small, "teacher.checkpoint")
    assert said == (
        "t.safetensors: backbone hf-hub:somebody/something: timm cannot make it (there is no such model); see "
        "timm.list_models(); it may be of a newer version"
    )


class Evil:
    """Unpickled, it makes a folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_pickle_with_code_in_it_is_not_run(small: Place, name: str) -> None:
    write_teacher(small.folder / "t.safetensors")
    content = pickle.dumps({"state_dict": {"conv1.weight": Evil()}}, protocol=2)
    (small.folder / name).write_bytes(content)
    said = refused(small, "student.detector", "--set", f"student.detector.weights={name}")
    assert said.startswith(f"{name}: ")
    (small.folder / "t.safetensors").write_bytes(content)
    assert refused(small, "teacher.checkpoint").startswith("t.safetensors: not a whole safetensors file (")
    assert not Path("was_run").exists()
    with (small.folder / name).open("rb") as file:
        pickle.load(file)
    assert Path("was_run").exists(), "read without care it would have been run"


def backbone(small: Place, state: Any) -> str:
    write_teacher(small.folder / "t.safetensors")
    torch.save(state, small.folder / "w.pth")
    return refused(small, "student.detector", "--set", "student.detector.weights=w.pth")


def test_weights_of_another_backbone(small: Place) -> None:
    said = backbone(small, timm.create_model("resnet10t").state_dict())
    assert said.startswith("w.pth: ")
    assert "tensors are not of timm's resnet18 (first: conv1.0.weight); give the weights of that model, or name" in said


def test_weights_of_another_width(small: Place) -> None:
    said = backbone(small, timm.create_model("resnet18").state_dict())
    assert said.startswith("w.pth: the weights are of another network: 6 missing (layer1.0.downsample.0.weight, ")
    assert " of another shape (layer1.0.conv1.weight (64, 64, 3, 3) for (8, 64, 3, 3), " in said


def test_weights_with_numbers_that_are_none(small: Place) -> None:
    state = timm.create_model("resnet18", **SPEC.backbone_options).state_dict()
    state["layer1.0.conv1.weight"][0] = float("inf")
    assert backbone(small, state).startswith("w.pth: 1 tensor holds NaN or infinity (first: layer1.0.conv1.weight); ")


def test_weights_that_are_none(small: Place) -> None:
    assert backbone(small, [1, 2]) == "w.pth: holds no state dict (a mapping of names to tensors)"


def test_a_backbone_that_timm_does_not_know(small: Place) -> None:
    write_teacher(small.folder / "t.safetensors")
    more = ("--set", "student.detector.backbone=resnet81", "--set", "student.detector.backbone_options={}")
    said = refused(small, "student.detector", *more)
    assert said == "backbone resnet81: timm cannot make it (there is no such model); see timm.list_models()"
